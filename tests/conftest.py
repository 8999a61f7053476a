"""Shared fixtures: where the reference datasets lie, and one thread per process."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


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
