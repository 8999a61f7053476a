"""A training step rehearsed: every operator of the real one, on tensors that have sizes and no contents.

Under torch's FakeTensorMode a model of 70 billion parameters is built and goes through forward, backward and AdamW in
seconds, on any machine. The counts are those of the real step. Bytes are counted by following storages
(models/memory/counted_bytes.py), FLOPs by the counter (models/cost/flop_counter.py), which refuses an operator that it
does not know.

The examples of the batch are real tensors, because some families read values on the host (lengths, missing values,
absent targets) and act on them. Operators whose inputs are all real are therefore computed. The result of an operator
with a fake input is fake.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributions import Distribution
from torch.utils._python_dispatch import TorchDispatchMode

from reducible.models.contract import Model
from reducible.models.cost.flop_counter import WholeOperators
from reducible.models.layers.device_kind import rehearsed_for
from reducible.models.loss import BrokenContract, broken_loss
from reducible.models.memory.counted_bytes import Alive
from reducible.models.memory.lstm_workspace import cudnn_bytes, cudnn_scratch, onednn_bytes, onednn_scratch
from reducible.models.quantise.quantised_base import blocks_of

aten = torch.ops.aten

Path = tuple[str | int, ...]
"""The place of a parameter: the names of its modules and its own. A module in a list, such as a layer, has a number."""
FORWARD, REST = ("forward",), ("rest",)

NO_PRODUCTS = (
    aten.linalg_cholesky_ex,
    aten.linalg_solve_triangular,
    aten.cholesky_inverse,
    aten.cholesky_solve,
)
"""The factorisations and triangular solves of linear-gaussian. cost/ledger.py does not count them either."""


@dataclass(frozen=True)
class Units:
    """What FSDP2 gathers at once, in bytes as gathered: each block, and everything outside of blocks (the root)."""

    blocks: tuple[int, ...]
    blocks_trained: tuple[int, ...]
    """The number of trained numbers of each block."""
    root: int
    root_trained: int
    table: int
    """The size of the largest trained matrix outside of blocks. Its gradient exists before those of the blocks."""

    @property
    def gathered(self) -> int:
        return sum(self.blocks) + self.root


@dataclass(frozen=True)
class Stage:
    """A stage of the step: forward, backward from one gradient to the next, or the rest."""

    path: Path
    """FORWARD, the parameter whose gradient ends the stage, or REST."""
    others: float
    """The most bytes alive at once, weights and moments included, without the gradients that are complete."""
    gradients: float
    """The bytes of the gradients that were complete before the stage, which stay."""


@dataclass(frozen=True)
class Rehearsal:
    """What one step of one process takes, in bytes and FLOPs."""

    parameters: int
    trained: int
    """The number of parameters that have a gradient."""
    weights: float
    gradients: float
    moments: float
    held: float
    """What forward leaves for backward; of the largest piece, if the family cuts batches into pieces."""
    stages: tuple[Stage, ...]
    """Each stage grows linearly with the model and the batch. Which one is the largest changes with both."""
    flops: float
    """FLOPs of one micro-batch, forward and backward; what is computed twice counts twice."""
    units: Units
    """The units of sharding under FSDP2."""
    operators: int
    """The number of operators of the rehearsal."""

    @property
    def activations(self) -> float:
        """The most bytes alive at once without weights, gradients and moments: what forward left and backward makes."""
        return max(stage.others for stage in self.stages) - self.weights - self.moments

    @property
    def peak(self) -> float:
        """The most bytes at once in the first micro-batch of a step: gradients appear as activations are freed."""
        # Gradients that no loss reached are made as zeros for the update, when the activations are freed.
        update = self.weights + self.moments + self.gradients
        return max(update, *(stage.others + stage.gradients for stage in self.stages))

    @property
    def accumulating_peak(self) -> float:
        """The same in a later micro-batch or under DDP, where all gradients exist from the start."""
        return max(stage.others for stage in self.stages) + self.gradients


def rehearse(
    build: Callable[[], Model],
    batch: dict[str, Tensor],
    *,
    autocast: torch.dtype | None = None,
    device: str = "cpu",
    optimizer_bytes: int = 8,
) -> Rehearsal:
    """Rehearses a step of the model that `build` returns ready for training: checkpointing set, frozen weights frozen.

    batch: real tensors on the CPU, of the sizes in question. autocast: the type to compute in. device: "cpu", or "cuda"
    for the paths that models take on a GPU, which this machine need not have. optimizer_bytes: what the optimizer holds
    for each trained parameter.

    Raises:
        UncountedOperator: the step multiplies matrices in a way that has no formula.
    """
    alive = Alive(onednn_scratch if device == "cpu" else cudnn_scratch)
    norms = norms_in_one_kernel() if device == "cuda" else nullcontext()
    with (
        torch.random.fork_rng(devices=()),
        unchecked(),
        rehearsed_for(device),
        norms,
        FakeTensorMode(allow_non_fake_inputs=True),
        _Rehearsing(device, alive) as rehearsing,
    ):
        with moves_that_move_nothing():
            model = build()
        trained = {parameter: path for parameter, path in paths_of(model).items() if parameter.requires_grad}
        moments = [torch.zeros_like(parameter) for parameter in trained for _ in range(optimizer_bytes // 4)]
        moments += [torch.zeros(n, dtype=torch.uint8) for p in trained if (n := optimizer_bytes % 4 * p.numel())]
        state = alive.bytes_of([*model.parameters(), *model.buffers(), *moments])
        ends: dict[Path, StageEnd] = {}
        for parameter, path in trained.items():
            parameter.register_post_accumulate_grad_hook(_noting(ends, path, alive))
        began, held = len(alive.history), 0
        counter = WholeOperators(dict.fromkeys((*NO_PRODUCTS, *_dequantising(model)), _nothing))
        rehearsing.counter = counter
        for piece, _ in model.pieces(batch):
            before = alive.now
            # Casts are cached inside autocast and go with it, as in the train step.
            with torch.autocast("cpu", autocast) if autocast else nullcontext():
                loss = model(piece)
                if reason := broken_loss(loss):
                    raise BrokenContract(reason)
                held = max(held, alive.now - before)
                ends.setdefault(FORWARD, StageEnd(len(alive.history)))
                loss.nats.backward()
            del loss
        rehearsing.counter = None
        ends[REST] = StageEnd(len(alive.history))
        return Rehearsal(
            parameters=parameters_of(model),
            trained=sum(parameter.numel() for parameter in trained),
            weights=state - alive.bytes_of(moments),
            gradients=sum(parameter.nbytes for parameter in trained),
            moments=alive.bytes_of(moments),
            held=held,
            stages=_stages(alive.history, began, ends),
            flops=counter.total,
            units=units_of(model),
            operators=len(alive.history),
        )


def _dequantising(model: nn.Module) -> tuple[Any, ...]:
    """Operators of bitsandbytes that look numbers up in tables."""
    if not blocks_of(model):
        return ()
    library = torch.ops.bitsandbytes
    return library.dequantize_4bit, library.dequantize_blockwise


def _nothing(*_: Any, **__: Any) -> int:
    return 0


class StageEnd(NamedTuple):
    operators: int
    """How many came before."""
    gradient: int = 0
    """Bytes of the gradient that is now where the optimizer finds it."""


def _noting(ends: dict[Path, StageEnd], path: Path, alive: Alive) -> Callable[[Tensor], None]:
    def note(parameter: Tensor) -> None:
        if parameter.grad is not None:  # a later piece adds to what is there
            ends.setdefault(path, StageEnd(len(alive.history), parameter.grad.nbytes))

    return note


def _stages(history: list[int], began: int, ends: dict[Path, StageEnd]) -> tuple[Stage, ...]:
    """The stages, from the bytes alive after each operator. Gradients that are complete together share one stage."""
    stages, gradients = [], 0
    for path, end in ends.items():
        if end.operators > began:
            stages.append(Stage(path, max(history[began : end.operators]) - gradients, gradients))
        began, gradients = end.operators, gradients + end.gradient
    return tuple(stages)


def paths_of(model: nn.Module) -> dict[nn.Parameter, Path]:
    """The path of each parameter, in the order of `named_parameters`. A shared one has that of its first place."""
    found: dict[nn.Parameter, Path] = {}

    def walk(module: nn.Module, path: Path) -> None:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(parameter, (*path, name))
        listed = isinstance(module, nn.ModuleList | nn.Sequential)
        for step, child in enumerate(module) if listed else module.named_children():  # type: ignore[arg-type]
            walk(child, (*path, step))

    walk(model, ())
    return found


def units_of(model: Model) -> Units:
    blocks = [list(block.parameters()) for block in model.blocks()]
    inside = {parameter for block in blocks for parameter in block}
    root = [parameter for parameter in model.parameters() if parameter not in inside]
    return Units(
        blocks=tuple(sum(p.nbytes for p in block) for block in blocks),
        blocks_trained=tuple(sum(p.numel() for p in block if p.requires_grad) for block in blocks),
        root=sum(p.nbytes for p in root),
        root_trained=sum(p.numel() for p in root if p.requires_grad),
        table=max((p.numel() for p in root if p.requires_grad and p.ndim > 1), default=0),
    )


def parameters_of(model: nn.Module) -> int:
    """The number of parameters. A quantised matrix counts as the matrix that it stands for."""
    blocks = blocks_of(model)
    codes = {parameter for module in blocks for parameter in module.parameters()}
    plain = sum(parameter.numel() for parameter in model.parameters() if parameter not in codes)
    return plain + sum(math.prod(module.shape) for module in blocks)


@contextmanager
def unchecked() -> Iterator[None]:
    """Turns off the checks of arguments in torch.distributions, because fake tensors have no numbers to check."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@contextmanager
def fake_where_it_matters(device: str = "cpu") -> Iterator[None]:
    """Inside, new tensors are fake, except those that are computed from real ones alone."""
    with FakeTensorMode(allow_non_fake_inputs=True), _RealStaysReal(device):
        yield


@contextmanager
def moves_that_move_nothing() -> Iterator[None]:
    """Makes module.to() do nothing if nothing changes. peft calls it so, and fake tensors cannot be swapped."""
    swap = torch.utils.swap_tensors

    def swap_what_differs(old: Tensor, new: Tensor) -> None:
        if (old.dtype, old.device) != (new.dtype, new.device):
            swap(old, new)

    # Module.to() always swaps fake parameters, and it looks this function up in torch.utils at each call.
    torch.utils.swap_tensors = swap_what_differs
    try:
        yield
    finally:
        torch.utils.swap_tensors = swap


@contextmanager
def norms_in_one_kernel() -> Iterator[None]:
    """RMSNorm as a GPU computes it. On a CPU torch puts it together from several operators, and keeps more."""
    before = torch.rms_norm
    # A TorchFunctionMode would not see what backward rebuilds.
    torch.rms_norm = _FusedNorm.apply
    try:
        yield
    finally:
        torch.rms_norm = before


class _FusedNorm(torch.autograd.Function):
    """The sizes of torch's kernel, which keeps its input and one number per row for backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        rows = x.new_empty(x.shape[: x.ndim - len(shape)], dtype=torch.float32)
        ctx.save_for_backward(x, weight, rows)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None, None if weight is None else torch.empty_like(weight), None


class _RealStaysReal(TorchDispatchMode):
    """Comes before FakeTensorMode: computes what need not be fake, and adds a size that it does not know."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            if func in _INDEXING:
                args = (args[0], _unpacked(args[1]), *args[2:])
            result = func(*args, **kwargs)
            if func is aten.mkldnn_rnn_layer.default:
                return (*result[:3], self._workspace(args))
            return result
        if tensors or _gives_whole_numbers(func, args, kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _workspace(self, args: tuple[Any, ...]) -> Tensor:
        input_TBX, hidden, train = args[0], args[10], args[15]
        steps, rows, inputs = input_TBX.shape
        if not train:
            size = 0
        elif self.device == "cpu":
            size = onednn_bytes(steps, rows, inputs, hidden)
        else:
            size = cudnn_bytes(steps, rows, hidden, input_TBX.element_size())
        return torch.empty(size, dtype=torch.uint8)


class _Rehearsing(_RealStaysReal):
    """One mode that also counts bytes and FLOPs. Each mode of torch costs time at every operator."""

    def __init__(self, device: str, alive: Alive) -> None:
        super().__init__(device)
        self.alive = alive
        self.counter: WholeOperators | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._run(func, args, kwargs or {})
        self.alive.note(func, args, result)
        if self.counter is not None:
            self.counter.note(func, args, kwargs or {}, result)
        return result


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operator's arguments, which are tensors, lists of them, or something else."""
    for argument in arguments:
        for leaf in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(leaf, Tensor):
                yield leaf


_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


def _unpacked(indices: Any) -> list[Tensor | None]:
    """The indices, with a real mask over several axes replaced by one index for each axis."""
    found: list[Tensor | None] = []
    for index in indices:
        if isinstance(index, Tensor) and not isinstance(index, FakeTensor) and index.dtype == torch.bool:
            with unset_fake_temporarily():
                found += index.nonzero(as_tuple=True)
        else:
            found.append(index)
    return found


def _gives_whole_numbers(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator without tensors makes integers, truth values or a single number, which is small and fast."""
    if kwargs.get("dtype") in (torch.bool, torch.uint8, torch.int32, torch.int64):
        return True
    if func._overloadpacket in (aten.arange, aten.tril_indices, aten.triu_indices):
        return all(isinstance(argument, int) for argument in args)
    return func._overloadpacket in (aten.rand, aten.randn, aten.scalar_tensor) and args[0] == []
