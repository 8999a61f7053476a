"""The ranks that train a model, and how they share gradients: one process, DDP or FSDP2.

Plain torch.distributed: the same under torchrun, under Ray Train and in one process.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from reducible.models.contract import Model
from reducible.models.quantise.number_formats import DTYPES
from reducible.models.quantise.quantised_base import blocks_of
from reducible.models.step_settings import Precision, Strategy, strategy_on

Item = TypeVar("Item")


class World:
    """This process among those that train together; a world of one if torch.distributed is not initialised."""

    def __init__(self) -> None:
        self.joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.joined else 0
        self.size = dist.get_world_size() if self.joined else 1
        if torch.cuda.is_available():
            local = int(os.environ.get("LOCAL_RANK", "0"))
            self.device = torch.device("cuda", local % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")
        # Host values use gloo on every device. Checkpoints are written by another thread and have a group of their
        # own, so that the two never mix.
        self.group = dist.new_group(backend="gloo") if self.joined else None
        self.background = dist.new_group(backend="gloo") if self.joined else None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over the ranks, in place, on the device; the host does not wait."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def host_total(self, tensor: Tensor) -> Tensor:
        """Sums a tensor on the host over the ranks."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def agreed(self, value: Any) -> Any:
        """Gives every rank the value of rank 0."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def share(self, items: Sequence[Item]) -> list[tuple[int, Item, bool]]:
        """This rank's share of a list: (index, item, real) for every round, with as many rounds on every rank.

        A rank with no item left in the last round gets the first item with real = False. It must take part in the
        collectives of the round, and its result must not count.
        """
        rounds = range(self.rank, -(-len(items) // self.size) * self.size, self.size)
        return [(i, items[i], True) if i < len(items) else (0, items[0], False) for i in rounds]


class _OrNothing(nn.Module):
    """The model. Without a batch its loss is 0, and so are all gradients.

    After one backward without a batch, DDP's buckets hold the gradients themselves, provided that these are set to 0
    in place from then on. Otherwise gradients that accumulate before the first reduction are stored beside the buckets,
    4 bytes for each parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor] | None) -> Any:
        if batch is None:
            return sum(0 * parameter.sum() for parameter in self.model.parameters() if parameter.requires_grad)
        return self.model(batch)


class Parallel:
    """The model as training calls it, and the moment when its gradients are reduced."""

    def __init__(self, model: Model, world: World, strategy: Strategy, precision: Precision) -> None:
        self.call: nn.Module = model
        # A mesh of one rank would need a process group, which a plain run does not have.
        self.strategy = strategy if strategy == "fsdp" and world.joined else strategy_on(world.size, strategy)
        # FSDP2 gathers a quantised base as it is stored: cast to 16 bits, its codes and constants would change.
        self.gathers_half = self.strategy == "fsdp" and precision != "fp32" and not blocks_of(model)
        """Whether weights are gathered in the precision; otherwise autocast casts them."""
        if self.strategy == "ddp":
            devices = [world.device] if world.device.type == "cuda" else None
            self.call = DistributedDataParallel(_OrNothing(model), device_ids=devices, gradient_as_bucket_view=True)
            self.call(None).backward()
        elif self.strategy == "fsdp":
            mesh = init_device_mesh(world.device.type, (world.size,))
            half = MixedPrecisionPolicy(param_dtype=DTYPES[precision], reduce_dtype=torch.float32)
            policy = half if self.gathers_half else MixedPrecisionPolicy()
            _leave_recurrent_weights(model)
            for block in model.blocks():
                fully_shard(block, mesh=mesh, mp_policy=policy)
            fully_shard(model, mesh=mesh, mp_policy=policy)

    @contextmanager
    def reducing(self, last: bool) -> Iterator[None]:
        """The context of a micro-batch's forward and backward. Under DDP gradients stay on their rank until the last.

        FSDP2 reduces the gradients of every micro-batch. Otherwise every rank would have to hold all gradients whole.
        """
        if isinstance(self.call, DistributedDataParallel) and not last:
            with self.call.no_sync():
                yield
        else:
            yield


def _leave_recurrent_weights(model: nn.Module) -> None:
    """Keeps recurrences from moving their weights together for cuDNN, which copies them at each call instead.

    FSDP2 gives a module other parameters for each forward. nn.RNNBase takes that for new weights, and moves them out of
    the memory into which the next ones are gathered: from the second step on it would use those of the first.
    """
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            vars(module)["flatten_parameters"] = _leave
    warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")


def _leave() -> None:
    pass


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor, which may be sharded, on the CPU. Every rank must call it."""
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().cpu()
