"""Weight matrices held outside their layers: frozen, with low-rank updates beside them, summed when they are used.

A layer that holds its matrices this way remains an nn.LSTM, or whatever its class is. It runs torch's fused kernel, and
code that reads `layer.weight_hh_l0` gets W0 + (alpha / r) B A. The sum is made when the layer is called, freed after
the call, and made again when backward needs it. So autograd never keeps a dense matrix from forward to backward.
By itself nn.RNNBase would keep the weights that it last ran with.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reducible.models.finetune.mixed_in import mix_in


class HeldMatrix(nn.Module):
    """W0 (out, in), frozen, and updates (alpha / r) B A by name, of which at most one is in use.

    In the terms of Hu et al. 2021, y = x W0 + (alpha / r) x L1 L2 with matrices that are multiplied from the right: A
    (r, in) is L1 and B (out, r) is L2, each transposed, as torch and peft store them.
    """

    def __init__(self, base: nn.Parameter | nn.Module, shape: Sequence[int]) -> None:
        """`base`: the numbers themselves, or a module whose call gives them."""
        super().__init__()
        self.base = base
        self.shape = (shape[0], shape[1])
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.scaling: dict[str, float] = {}
        self.active: str | None = None

    def replace(self, base: nn.Module) -> None:
        """Stores the same matrix in another way."""
        del self.base
        self.base = base

    def add(self, name: str, rank: int, alpha: float) -> None:
        """An update that changes nothing yet: A as peft draws it, from torch's global generator, and B = 0."""
        out, in_ = self.shape
        like = self.base if isinstance(self.base, nn.Parameter) else next(p for p in self.base.parameters())
        dtype = like.dtype if like.is_floating_point() else torch.float32
        A = torch.empty(rank, in_, dtype=dtype, device=like.device)
        if A.device.type != "meta":
            nn.init.kaiming_uniform_(A, a=5**0.5)
        self.lora_A[name] = nn.Parameter(A)
        self.lora_B[name] = nn.Parameter(torch.zeros(out, rank, dtype=dtype, device=like.device))
        self.scaling[name] = alpha / rank

    def use(self, name: str | None) -> None:
        """The update to add from now on, which is then the only one that is trained; None: W0 alone."""
        self.active = name
        for updates in (self.lora_A, self.lora_B):
            for key, parameter in updates.items():
                parameter.requires_grad_(key == name)

    def frozen(self) -> Tensor:
        """W0."""
        return self.base if isinstance(self.base, nn.Parameter) else self.base()

    def stand_in(self) -> Tensor:
        """One number, looked at as often as W0 has numbers: its size, type and device, without its memory."""
        like = next(self.base.parameters()) if isinstance(self.base, nn.Module) else self.base
        dtype = like.dtype if like.is_floating_point() else torch.float32
        return torch.zeros((), dtype=dtype, device=like.device).expand(self.shape)

    def update(self, name: str) -> Tensor:
        """(alpha / r) B A, (out, in)."""
        return self.scaling[name] * (self.lora_B[name] @ self.lora_A[name])

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """What the layer multiplies with; gradients reach A and B."""
        dense = self.frozen()
        if self.active is not None and self.active in self.lora_A:
            A, B = self.lora_A[self.active], self.lora_B[self.active]
            with torch.autocast(A.device.type, enabled=False):
                dense = torch.addmm(dense, B, A, alpha=self.scaling[self.active])
        return dense if dtype is None else dense.to(dtype)

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, updates: {', '.join(self.lora_A) or 'none'}"


class HoldsMatrices(nn.Module):
    """Mixed into the class of a layer whose matrices `hold` has taken: reading one of them gives the sum."""

    matrices: nn.ModuleDict
    _together: dict[str, Tensor] | None = None
    """The matrices during a call. Each is made once, even if the layer reads it several times."""

    def __getattr__(self, name: str) -> Any:
        matrices = self.__dict__["_modules"].get("matrices")
        if matrices is None or name not in matrices:
            return super().__getattr__(name)
        return matrices[name].dense() if self._together is None else self._together[name]

    def forward(self, *given: Any, **named: Any) -> Any:
        dtype = self._dtype()
        makers: list[Any] = [partial(held.dense, dtype) for held in self.matrices.values()]  # type: ignore
        with made_again_in_backward(makers) as matrices:
            self._together = dict(zip(self.matrices, matrices, strict=True))
            try:
                return super().forward(*given, **named)
            finally:
                self._together = None

    def _dtype(self) -> torch.dtype | None:
        """Under autocast a linear layer would cast its matrix, and autograd would keep what came out of the cast."""
        device = next(iter(self.parameters())).device.type
        if isinstance(self, nn.Linear) and torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return None


class HoldsRecurrentMatrices(HoldsMatrices):
    """The same for nn.RNNBase, whose list of weights then exists only during a call."""

    _flat_weights: list[Tensor]
    _flat_weights_names: list[str]
    _flat_weight_refs: list[Any]

    def __setattr__(self, name: str, value: Any) -> None:
        nn.Module.__setattr__(self, name, value)  # nn.RNNBase would enter it in the list too

    def _update_flat_weights(self) -> None:
        names = [] if self._together is None else self._flat_weights_names
        self._flat_weights = [getattr(self, name) for name in names]

    def _init_flat_weights(self) -> None:
        self._flat_weights, self._flat_weight_refs = [], []

    def flatten_parameters(self) -> None:
        """Nothing to lay out in advance for cuDNN: these weights live for one call."""

    def forward(self, *given: Any, **named: Any) -> Any:
        try:
            return super().forward(*given, **named)
        finally:
            self._init_flat_weights()


def hold(layer: nn.Module, names: Sequence[str]) -> list[HeldMatrix]:
    """Takes these matrices out of a layer's parameters and freezes them. The layer works as before."""
    if not isinstance(layer, HoldsMatrices):
        layer.matrices = nn.ModuleDict()
        mix_in(layer, HoldsRecurrentMatrices if isinstance(layer, nn.RNNBase) else HoldsMatrices)
        if isinstance(layer, HoldsRecurrentMatrices):
            layer._init_flat_weights()
    held: nn.ModuleDict = layer.matrices  # type: ignore[assignment]
    for name in names:
        if name not in held:
            parameter = layer._parameters.pop(name)
            assert isinstance(parameter, nn.Parameter) and parameter.ndim == 2
            parameter.requires_grad_(False)
            held[name] = HeldMatrix(parameter, parameter.shape)
    return [held[name] for name in names]  # type: ignore[misc]


@contextmanager
def looked_at_only(model: nn.Module) -> Iterator[None]:
    """For code that asks matrices for their size, type and device: inside, reading one makes nothing dense."""
    layers = [layer for layer in model.modules() if isinstance(layer, HoldsMatrices)]
    for layer in layers:
        layer._together = {name: held.stand_in() for name, held in layer.matrices.items()}  # type: ignore[operator]
    try:
        yield
    finally:
        for layer in layers:
            layer._together = None


@contextmanager
def made_again_in_backward(makers: Sequence[Callable[[], Tensor]]) -> Iterator[list[Tensor]]:
    """Makes tensors for the operators called inside, and makes them again in backward instead of keeping them.

    Autograd saves how to make a tensor instead of the tensor, so backward makes it once for each call. Other saved
    tensors are treated as before, also by the hooks of activation checkpointing.
    """
    made = [make() for make in makers]
    if not torch.is_grad_enabled():
        yield made
        return
    recipes = {
        tensor.untyped_storage()._cdata: _Recipe(make)
        for make, tensor in zip(makers, made, strict=True)
        if not isinstance(tensor, nn.Parameter)
    }
    outer = torch._C._autograd._top_saved_tensors_default_hooks(False)  # torch asks the innermost hooks alone

    def pack(tensor: Tensor) -> Any:
        recipe = recipes.get(tensor.untyped_storage()._cdata)
        if recipe is not None:
            return _View(recipe, tensor)
        return tensor if outer is None else outer[0](tensor)

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, _View):
            return packed.again()
        return packed if outer is None else outer[1](packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield made


class _Recipe:
    """Makes a tensor again when backward asks for the first of its saved views, and keeps it until the last is freed.

    torch's GRU saves its matrix once for every step.
    """

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self.make = make
        self.made: Tensor | None = None

    def ask(self) -> Tensor:
        if self.made is None:
            with torch.no_grad():
                self.made = self.make()
        return self.made


class _View:
    """A saved tensor, or a view of it such as its transpose."""

    def __init__(self, recipe: _Recipe, tensor: Tensor) -> None:
        self.recipe = recipe
        self.layout = tensor.shape, tensor.stride(), tensor.storage_offset()

    def again(self) -> Tensor:
        return self.recipe.ask().as_strided(*self.layout)
