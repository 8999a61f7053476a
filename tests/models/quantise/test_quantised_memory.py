"""No dense copy of W0 survives a step, by what the operating system says: anonymous memory of a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "cases" / "quantised_step.py"
ROOT = PROGRAM.parents[2]


def memory_after_a_step(width: int, depth: int) -> dict[str, dict[str, float]]:
    settings = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        # What is freed goes back at once: memory that the libraries keep for later belongs to no tensor.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "MKL_DISABLE_FAST_MM": "1",
    }
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), str(width), str(depth)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout)


def check(width: int, depth: int, least: float) -> None:
    for family, memory in memory_after_a_step(width, depth).items():
        assert memory["quantised numbers"] > least
        # 0.516 bytes a number in 4 bits, everything else at its size, 16 bytes a trained number.
        assert memory["measured"] == pytest.approx(memory["expected"], rel=0.05), family
        dense = 4 * memory["quantised numbers"]
        assert memory["measured"] < dense / 6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_memory_after_a_step_is_that_of_codes_constants_and_what_is_trained() -> None:
    check(2048, 1, least=33e6)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_memory_after_a_step_of_several_layers() -> None:
    check(2048, 4, least=134e6)
