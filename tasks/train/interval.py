"""What happened since the last logged row, kept on the device until the host reads it.

Values are kept by (step, global micro-batch) and summed in that order on the host in float64. So the logged loss is the
same to the bit wherever checkpoints are, and the same to rounding for any world size.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reducible.tasks.train.parallel import World


class Seen(NamedTuple):
    """One micro-batch, on the host."""

    step: int
    micro_batch: int
    units: int
    nats: float
    parts: tuple[float, ...]


class Interval:
    """Nats, units, parts and gradient norms since the last logged row. Every rank calls it at the same steps."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen: list[Seen] = []
        self.parts: list[str] = []
        """The names of the further sums in the family's loss."""
        self.norm = math.nan
        """The gradient norm of the last step that was collected."""
        self._slots: list[tuple[int, int]] = []
        self._own: list[tuple[int, int, list[Tensor]]] = []
        self._norms: list[tuple[int, Tensor]] = []

    def step(self, step: int, micro_batches: int) -> None:
        """Announces a step with that many global micro-batches."""
        self._slots.extend((step, micro_batch) for micro_batch in range(micro_batches))
        self._first = len(self._slots) - micro_batches

    def add(self, micro_batch: int, units: int, nats: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Adds one micro-batch of this rank."""
        self.parts = list(parts)
        values = [nats.detach(), *(part.detach() for part in parts.values())]
        self._own.append((self._first + micro_batch, units, values))

    def gradient(self, step: int, norm: Tensor) -> None:
        self._norms.append((step, norm))

    def collect(self) -> tuple[list[Seen], int | None]:
        """Brings everything new from all ranks to the host: (new micro-batches, first step with a bad gradient).

        This is the only place where training waits for the device.
        """
        table = torch.zeros(len(self._slots), 2 + len(self.parts), dtype=torch.float64)
        if self._own:
            rows = torch.tensor([row for row, _, _ in self._own])
            columns = torch.stack([value for _, _, values in self._own for value in values])
            table[rows, 0] = torch.tensor([units for _, units, _ in self._own], dtype=torch.float64)
            table[rows, 1:] = columns.double().cpu().view(len(self._own), -1)
        values = self.world.host_total(table).tolist()
        new = [
            Seen(step, micro_batch, int(units), nats, tuple(parts))
            for (step, micro_batch), (units, nats, *parts) in zip(self._slots, values, strict=True)
        ]
        norms = torch.stack([norm for _, norm in self._norms]).tolist() if self._norms else []
        bad = next((step for (step, _), norm in zip(self._norms, norms, strict=True) if not math.isfinite(norm)), None)
        self.norm = norms[-1] if norms else self.norm
        self.seen += new
        self._slots, self._own, self._norms = [], [], []
        return new, bad

    def means(self) -> dict[str, float]:
        """Nats and every part, per target unit, over the whole interval."""
        units = max(1, sum(seen.units for seen in self.seen))
        loss = sum(seen.nats for seen in self.seen) / units
        return {"loss": loss} | {
            name: sum(seen.parts[i] for seen in self.seen) / units for i, name in enumerate(self.parts)
        }

    def reset(self) -> None:
        self.seen = []

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen, "parts": self.parts}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seen = [Seen(row[0], row[1], row[2], row[3], tuple(row[4])) for row in state["seen"]]
        self.parts = list(state["parts"])
