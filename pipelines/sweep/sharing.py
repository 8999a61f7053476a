"""How much of a GPU a cell holds. A small one leaves it waiting for Python most of the time, so several share it."""

from dataclasses import replace
from functools import cache

from reducible.models.memory.step_plan import Setting, planned
from reducible.pipelines.plan.memory import Asked, setting_of
from reducible.pipelines.recipe.recipe import Recipe
from reducible.tasks.train.train_spec import TrainSpec

MOST = 8
"""Cells on a GPU. Each has a process of its own, and a core."""
FILLS = 1e12
"""FLOPs of one forward and backward pass that keep a GPU busy. (A step of 3.3e12 FLOPs in bf16 filled 44 % of an H200's
time, benchmarks/README.md; other cards and fp32 are some five times slower.)"""
SMALLEST_GPU = 14e9
"""Bytes that cells may fill: those of the smallest usual card, because the driver does not see the workers'."""
CONTEXT = 6e8
"""Bytes that CUDA takes for each process."""


def share_of_gpu(recipe: Recipe, spec: TrainSpec, flops_per_unit: float) -> float:
    """The part of compute.gpus_per_worker that a training of the sweep holds: 1, 1/2, ... 1/8."""
    sweep, compute = recipe.sweep, recipe.compute
    assert sweep is not None
    if compute.workers > 1 or compute.gpus_per_worker != 1:
        return 1.0  # several workers fill their GPUs, and a fraction is the person's own choice
    if sweep.cells_per_gpu != "auto":
        return 1 / sweep.cells_per_gpu
    units = min(spec.batch, spec.micro_batch * spec.sequence)
    by_work = min(MOST, int(FILLS / (units * flops_per_unit)))
    if by_work < 2:
        return 1.0
    setting, _ = setting_of(recipe, spec, Asked())
    by_memory = int(SMALLEST_GPU / (CONTEXT + _peak(replace(setting, device="cuda"))))
    return 1 / max(1, min(by_work, by_memory))


@cache  # the stretches of a trunk have one step, and many cells of a sweep too
def _peak(setting: Setting) -> float:
    """Bytes of a step on a GPU, rehearsed on fake tensors."""
    return float(planned(setting).peak)
