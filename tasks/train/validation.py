"""The loss on the fixed validation examples: summed over all, divided once, the same for any world size."""

import math

import torch

from reducible.tasks.train.examples import TrainingData
from reducible.tasks.train.step import Step

VALIDATION = -1
"""Takes the place of the step in the seed of a validation."""


@torch.no_grad()
def validate(step: Step, examples: TrainingData) -> dict[str, float]:
    """val/loss and the loss's parts in nats per target unit; val/bits_per_byte if the bytes of units are known."""
    step.model.eval()
    # Summed by micro-batch, as in the interval: one order for any world size.
    rows: dict[int, list[float]] = {}
    for micro in step.fetch(examples.held_out, examples.validation):
        step.seed_chance(VALIDATION, micro.number)  # the same draws at every validation
        with step.autocast():
            loss = step.parallel.call(micro.batch)
        names = list(loss.parts)
        if micro.real:
            bytes_ = 0
            if examples.unit_bytes is not None:
                bytes_ = examples.bytes_of(micro.batch["targets"].cpu().numpy())
            parts = [part.item() for part in loss.parts.values()]
            rows[micro.number] = [loss.nats.item(), micro.units, bytes_, *parts]
    step.model.train()
    sums = torch.zeros(len(examples.validation), 3 + len(names), dtype=torch.float64)
    for number, row in rows.items():
        sums[number] = torch.tensor(row, dtype=torch.float64)
    nats, units, of_bytes, *of_parts = (
        sum(column) for column in zip(*step.world.host_total(sums).tolist(), strict=True)
    )
    means = {"loss": nats / max(1.0, units)}
    means |= {name: part / max(1.0, units) for name, part in zip(names, of_parts, strict=True)}
    step.model.at_validation(means)
    metrics = {f"val/{name}": mean for name, mean in means.items()}
    if of_bytes:
        metrics["val/bits_per_byte"] = nats / math.log(2) / of_bytes
    return metrics
