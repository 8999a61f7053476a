"""A home, a folder for temporary files and an environment of the tests' own; where the reference datasets lie.

Before anything is imported that reads them: Ray, MLflow, torch and matplotlib look into the home as they are imported.
What a user has there (a token, a configuration, a cache) must not decide whether a test passes. Subprocesses inherit
all three; each worker of pytest-xdist has its own, so that what is left behind is its own test's.
"""

import gc
import getpass
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

gc.disable()  # until all is imported: a million objects that stay, which collections would look through again and again

OF_THE_USER = ("RAY_", "MLFLOW_", "HF_", "XDG_", "REDUCIBLE_", "MPL", "TORCH")
KEPT = ("REDUCIBLE_DATASETS", "RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY")
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")

if WORKER:
    scratch = Path(os.environ["HOME"]).parent
else:
    for name in [name for name in os.environ if name.startswith(OF_THE_USER) and name not in KEPT]:
        del os.environ[name]
    scratch = Path(tempfile.mkdtemp(prefix="t"))
home = scratch / f"home{WORKER}"
temporary = scratch / f"t{WORKER.removeprefix('gw')}"  # short: Ray puts sockets below it, whose paths hold 107 bytes
for variable, folder in {"HOME": home, "TMPDIR": temporary}.items():
    folder.mkdir()
    os.environ[variable] = str(folder)
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(home / ".cache" / "torchinductor")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
tempfile.tempdir = None  # read again

VARIABLES = {
    "PYTEST_CURRENT_TEST": "pytest names the running test in it",
    "KMP_DUPLICATE_LIB_OK": "scikit-learn sets it as it is imported",
    "KMP_INIT_AT_FORK": "scikit-learn sets it as it is imported",
    "RAY_CLIENT_MODE": "Ray sets it as it is imported",
    "_MLFLOW_TELEMETRY_SESSION_ID": "MLflow sets it as it is imported",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR": "torch's compiler sets it as it is imported",
    # What the package itself sets once for its process, unless the user has: libraries read it as they start.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "read by oneDNN at its first product",
    "GIT_PYTHON_REFRESH": "read by MLflow's import of git",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "read by MLflow, as all that follow",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "",
    "MLFLOW_LOGGING_LEVEL": "",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "",
    "TOKENIZERS_PARALLELISM": "read by tokenizers after a fork",
}
"""What may change in the environment, and why."""
FILES = {
    home / ".cache": "matplotlib's list of fonts, torch's compiled kernels: made once, for all later tests",
    home / ".config": "matplotlib's and MLflow's, written as they are imported",
    temporary / f"torchinductor_{getpass.getuser()}": "torch's compiler makes it as it is imported",
    temporary / f"pytest-of-{getpass.getuser()}": "every test's own tmp_path",
}
"""What may stay in the home and among temporary files, and why."""


def state() -> dict[str, str]:
    """What a test must leave as it was: the environment, the current folder, the home and the temporary files."""
    found = {f"variable {name}": value for name, value in os.environ.items() if name not in VARIABLES}
    found["current folder"] = os.getcwd()
    for folder in (home, temporary):
        for path in folder.iterdir():
            if path not in FILES:
                found[f"file {path}"] = ""
    return found


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """One line for everything that is new, gone or another."""
    lines = [f"new: {name} {after[name]}" for name in sorted(after.keys() - before.keys())]
    lines += [f"gone: {name}" for name in sorted(before.keys() - after.keys())]
    shared = sorted(before.keys() & after.keys())
    return lines + [
        f"changed: {name} {before[name]} -> {after[name]}" for name in shared if before[name] != after[name]
    ]


def kills(marks: str) -> bool:
    """Whether these tests are the slow ones: some kill processes, which then cannot remove their temporary files."""
    return "slow" in marks and "not slow" not in marks


@pytest.fixture(scope="session", autouse=True)
def session_leaves_everything_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """What fixtures of modules leave behind is an error of the last test."""
    before = state()
    yield
    left = changes(before, state())
    if left and not kills(request.config.option.markexpr):
        pytest.fail("\n".join(["left behind by fixtures that tests share:", *left]), pytrace=False)


@pytest.fixture(autouse=True)
def leaves_everything_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that changes the environment, the current folder or the home, or leaves temporary files, fails."""
    before, environment, folder = state(), dict(os.environ), os.getcwd()
    yield
    left = changes(before, state())
    for name in os.environ.keys() - environment.keys() - VARIABLES.keys():  # one leak is one failure
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(folder)
    if left and not kills(request.config.option.markexpr):
        pytest.fail("\n".join(["left behind by this test:", *left]), pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Removes the home and the temporary files, unless a test failed."""
    if WORKER:
        return
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        print(f"\nthe files of these tests: {scratch}")


@pytest.fixture(scope="session")
def datasets() -> Path:
    """Real data with published numbers; it is never part of the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    folder = Path(os.environ.get("REDUCIBLE_DATASETS", default))
    if not folder.is_dir():
        pytest.skip(f"reference datasets are not at {folder}; set REDUCIBLE_DATASETS to their folder")
    return folder


LONGEST = (
    "pipelines/cluster/test_jobs.py",
    "pipelines/test_finetune.py",
    "pipelines/test_cli.py",
    "pipelines/sweep/test_families_sweep.py",
    "tasks/fit/test_coverage.py",
    "tasks/fit/test_overtaking.py",
    "tasks/train/test_train_task.py",
    "tasks/train/test_finetuning.py",
    "tasks/train/test_resume.py",
    "tasks/train/test_every_family.py",
    "test_package.py",
    "models/memory/test_ranks.py",
    "models/memory/test_rehearsed_step.py",
    "models/memory/test_step_plan_scaling.py",
)
"""Files that take half a minute or more, or whose slow tests do: begun last, one would run alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first. A file's tests stay together and in order."""
    root = Path(__file__).parent
    places = {root / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """From here on collections pass over what was imported."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu are skipped where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")
