"""Why a training has diverged: a micro-batch has a bad gradient, or the loss ends above where it began."""

import math

from reducible.tasks.train.progress import Standing
from reducible.tasks.train.step import Step


def culprits(step: Step, number: int) -> str:
    """Finds the micro-batch with the bad gradient, by running a step again one micro-batch after another.

    The guard has kept the weights of that step. Ranks run a round together, so all micro-batches of it are named.
    """
    bad: list[str] = []
    step.model.at_step(number, step.spec.scheduled_steps)
    indices = step.batches.micro_batches(number)
    micros = step.fetch(step.batches, indices)
    weight = step.weight(micros)
    for round_, micro in enumerate(micros):
        step.optimizer.zero_grad()
        step.backward(number, [micro], weight)
        if not math.isfinite(step.optimizer.norm(step.optimizer.gradients()).item()):
            first = round_ * step.world.size
            bad += [str(i) for i in range(first, min(first + step.world.size, len(indices)))]
    if not bad:
        return "the sum of all micro-batches"
    return f"micro-batch {bad[0]}" if len(bad) == 1 else f"one of micro-batches {', '.join(bad)}"


def verdict(standing: Standing, finetunes: bool) -> tuple[str, str | None]:
    """(status, reason). A run has diverged, though all gradients were finite, if its loss ends clearly above that of
    the untrained model or of the base that it fine-tunes.
    """
    progress = standing.progress
    # The base's loss is known on the validation examples only, which may be easier or harder than the training's.
    untrained = None if finetunes else progress.first_loss
    before = "base" if finetunes else "untrained model"
    for name, loss, first in (
        ("training", standing.losses.get("train/loss"), untrained),
        ("validation", standing.validation.get("val/loss"), progress.base_loss if untrained is None else untrained),
    ):
        if loss is not None and not math.isfinite(loss):
            return "diverged", f"step {progress.step}: the {name} loss is not finite"
        if loss is not None and first is not None and loss > first + 0.2 * abs(first):
            return "diverged", (
                f"step {progress.step}: the {name} loss is {loss:.4f}, above the {before}'s {first:.4f}; "
                "try a smaller learning rate"
            )
    return "finished", None
