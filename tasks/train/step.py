"""The train step: fetch everything, count once, divide in backward, reduce once, update once.

On steps without a log row, a checkpoint or a validation the host does not wait for the device, except in families
that have to: seq2seq packs its sources by lengths that the host must know, and linear-gaussian reads which values are
missing.
"""

import hashlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reducible.models.loss import Loss, total_of
from reducible.models.quantise.number_formats import DTYPES
from reducible.tasks.train.build import Trainee
from reducible.tasks.train.guards import FiniteGuard, SpikeGuard
from reducible.tasks.train.interval import Interval
from reducible.tasks.train.loss_scale import LossScale
from reducible.tasks.train.parallel import World
from reducible.tasks.train.schedule import rate_at
from reducible.tasks.train.train_spec import TrainSpec


class Micro(NamedTuple):
    """One micro-batch on this rank. If it is not real, it only takes part in the collectives and does not count."""

    number: int
    """Which of the step's global micro-batches."""
    batch: dict[str, Tensor]
    units: int
    real: bool


class Step:
    """Does one step of a training on this rank when called with the step's number. Every rank calls it."""

    def __init__(self, spec: TrainSpec, trainee: Trainee, batches: Any, world: World, learning_rate: float) -> None:
        self.spec, self.batches, self.world, self.learning_rate = spec, batches, world, learning_rate
        self.model, self.parallel, self.optimizer = trainee.model, trainee.parallel, trainee.optimizer
        self.half = spec.precision != "fp32" and not self.parallel.gathers_half
        self.stochastic = self.model.stochastic
        self.interval = Interval(world)
        self.finite = FiniteGuard(world.device)
        self.spikes = SpikeGuard(spec.spike_guard, world.device) if spec.spike_guard else None
        self.loss_scale = LossScale(world.device) if spec.precision == "fp16" else None

    def __call__(self, step: int) -> None:
        frozen = self.model.at_step(step, self.spec.scheduled_steps)
        indices = self.batches.micro_batches(step)
        micros = self.fetch(self.batches, indices)
        self.interval.step(step, len(indices))
        weight = self.weight(micros)
        nats = self.backward(step, micros, weight, record=True)
        gradients = self.optimizer.gradients()
        norm = self.optimizer.norm(gradients)
        scale, overflow = None, None
        if self.loss_scale is not None:
            scale = self.loss_scale.scale
            norm, overflow = self.loss_scale(norm)
        self.interval.gradient(step, norm)
        skip = self.finite(norm)
        if overflow is not None:
            skip = torch.maximum(skip, overflow)
        if self.spikes is not None:
            # The sum over ranks x weight (world size / units of the step) / world size.
            loss = self.world.total(torch.stack(nats).sum()) * weight / self.world.size
            skip = torch.maximum(skip, self.spikes(loss, norm))
        self.optimizer.step(gradients, norm, self.rate(step), skip, frozen, scale)
        self.optimizer.zero_grad()

    def rate(self, step: int) -> float:
        return self.learning_rate * rate_at(step, self.spec.schedule, self.spec.stop_step)

    def fetch(self, batches: Any, indices: list[np.ndarray]) -> list[Micro]:
        """This rank's share of the micro-batches, as many on every rank."""
        micros = []
        for number, examples, real in self.world.share(indices):
            arrays = batches.fetch(examples)
            units = batches.units(arrays) if real else 0
            micros.append(Micro(number, self.to_device(arrays), units, real))
        return micros

    def weight(self, micros: list[Micro]) -> Tensor:
        """World size / target units of the step over all ranks, on the device. Reducing averages over the ranks."""
        # torch.full, not torch.tensor: the number becomes an argument of a kernel, so no copy waits for the device.
        units = torch.full((), sum(micro.units for micro in micros), dtype=torch.int64, device=self.world.device)
        return self.world.size / self.world.total(units).clamp_(min=1)

    def backward(self, step: int, micros: list[Micro], weight: Tensor, record: bool = False) -> list[Tensor]:
        """Adds up the gradients of (sum of nats) / units over micro-batches and ranks; returns this rank's nats.

        A loss scale multiplies the gradients, not the nats.
        """
        nats = []
        if self.loss_scale is not None:
            weight = weight * self.loss_scale.scale
        for round_, micro in enumerate(micros):
            last_round = round_ == len(micros) - 1
            factor = weight if micro.real else torch.zeros_like(weight)
            self.seed_chance(step, micro.number)
            loss = self.piece_by_piece(micro, factor, last_round)
            nats.append(loss.nats if micro.real else torch.zeros_like(loss.nats))
            if record:
                self.interval.parts = list(loss.parts)  # even if this rank's micro-batch does not count
            if record and micro.real:
                self.interval.add(micro.number, micro.units, loss.nats, loss.parts)
        return nats

    def piece_by_piece(self, micro: Micro, factor: Tensor, last_round: bool) -> Loss:
        """Forward and backward of one piece after another (mostly one); frees a piece's memory before the next."""
        losses = []
        for piece, last in self.model.pieces(micro.batch):
            with self.parallel.reducing(last=last_round and last), self.autocast():
                loss = self.parallel.call(piece)
                loss.nats.backward(factor)
            parts = {name: part.detach() for name, part in loss.parts.items()}
            losses.append(Loss(loss.nats.detach(), loss.units, parts))
        return total_of(losses)

    def seed_chance(self, step: int, micro_batch: int) -> None:
        """Seeds everything random in a micro-batch by seed, step and its global index (contract 3)."""
        if not self.stochastic:
            return
        seed = chance(self.spec.seed, step, micro_batch)
        # Each generator is seeded itself, because torch.manual_seed visits every kind of device and takes 0.3 ms.
        torch.default_generator.manual_seed(seed)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.world.device.type, DTYPES[self.spec.precision]) if self.half else nullcontext()

    def to_device(self, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.world.device.type == "cpu":
            return tensors
        # A copy from pinned memory runs beside the kernels, and the host does not wait.
        return {name: tensor.pin_memory().to(self.world.device, non_blocking=True) for name, tensor in tensors.items()}


def chance(seed: int, step: int, micro_batch: int) -> int:
    """A pseudo-random number of 63 bits, which its arguments determine."""
    digest = hashlib.blake2b(f"{seed}/{step}/{micro_batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
