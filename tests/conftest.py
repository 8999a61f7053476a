"""A home, a folder for temporary files and an environment of the tests' own; where the reference datasets lie.

Before anything is imported that reads them: Ray, MLflow, torch and matplotlib look into the home as they are imported.
What a user has there (a token, a configuration, a cache) must not decide whether a test passes, and no test leaves
anything in it. Subprocesses and the workers of pytest-xdist inherit it.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

OF_THE_USER = ("RAY_", "MLFLOW_", "HF_", "XDG_", "REDUCIBLE_", "MPL", "TORCH")
KEPT = ("REDUCIBLE_DATASETS", "RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY")
ALONE = "PYTEST_XDIST_WORKER" not in os.environ

if ALONE:
    for name in [name for name in os.environ if name.startswith(OF_THE_USER) and name not in KEPT]:
        del os.environ[name]
    scratch = Path(tempfile.mkdtemp(prefix="t"))  # short: Ray puts sockets below it, whose paths may have 107 bytes
    for variable, folder in {"HOME": "home", "TMPDIR": "tmp"}.items():
        (scratch / folder).mkdir()
        os.environ[variable] = str(scratch / folder)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "home" / ".cache" / "torchinductor")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
tempfile.tempdir = None  # read again

CACHES = {".cache", ".config", ".triton"}
"""What libraries keep in a home, such as matplotlib's list of fonts."""
OF_OTHERS = ("pytest-of-", "torchelastic_", "pymp-")
"""What pytest and torchrun leave among temporary files."""


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Says what tests left in the home or among temporary files, and removes both unless a test failed."""
    if not ALONE:
        return
    left = [str(path) for path in (scratch / "home").iterdir() if path.name not in CACHES]
    left += [str(path) for path in (scratch / "tmp").iterdir() if not path.name.startswith(OF_OTHERS)]
    if left:
        print(f"\nleft behind by tests: {', '.join(sorted(left))}")
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        print(f"\nthe files of these tests: {scratch}")


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """What a test, or a library in it, leaves in the environment does not reach the next."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def datasets() -> Path:
    """Real data with published numbers; it is never part of the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    folder = Path(os.environ.get("REDUCIBLE_DATASETS", default))
    if not folder.is_dir():
        pytest.skip(f"reference datasets are not at {folder}; set REDUCIBLE_DATASETS to their folder")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu are skipped where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")
