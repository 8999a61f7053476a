"""The ledger of cost: parameters, FLOPs and bytes by formula (contract 6).

Conventions, for every family:
- A FLOP is a multiplication or an addition inside a matrix product; norms, softmax and other elementwise work count
  nothing. This is what torch.utils.flop_counter counts.
- Attention counts the full square of scores, not its causal half, as torch's counter does.
- Training is forward and backward, three times forward: model FLOPs. What is computed a second time stands apart, in
  `attention_recompute_flops_per_unit`, `checkpointing_flops_per_unit` and `sqrt_time_flops_per_unit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lengths:
    """How long the examples are, as far as the cost of a target unit depends on it.

    With T target units and S source units an example, and E the mean over examples. Each is a ratio of totals, so
    that cost per unit x units is what the examples cost one by one; padding is never counted.
    """

    target: float
    """E[T]."""
    target_span: float
    """E[T^2] / E[T]: how many targets a target meets in its own example, itself included."""
    source_per_unit: float = 0.0
    """E[S] / E[T]."""
    source_span: float = 0.0
    """E[S^2] / E[T]."""
    cross_span: float = 0.0
    """E[S T] / E[T]: how many source units a target meets."""

    @classmethod
    def fixed(cls, target: float, source: float = 0.0) -> "Lengths":
        """Every example has `target` target units and `source` source units."""
        return cls(target, target, source / target, source * source / target, source)

    @classmethod
    def measured(cls, targets: Sequence[int], sources: Sequence[int] | None = None) -> "Lengths":
        """Of examples with these lengths; without sources there are none."""
        sources = [0] * len(targets) if sources is None else sources
        # Whole numbers of Python: sums of squares of a large set overflow no type.
        pairs = [(int(target), int(source)) for target, source in zip(targets, sources, strict=True)]
        total = sum(target for target, _ in pairs)
        return cls(
            total / len(pairs),
            sum(target * target for target, _ in pairs) / total,
            sum(source for _, source in pairs) / total,
            sum(source * source for _, source in pairs) / total,
            sum(target * source for target, source in pairs) / total,
        )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one model costs; per unit means per target unit (for text: per token of a full sequence)."""

    family: str
    parameters: int
    parameters_without_embeddings: int
    """Without the input table and, where it is separate, the output table."""
    forward_flops_per_unit: float
    training_flops_per_unit: float
    attention_recompute_flops_per_unit: float = 0.0
    """What fused attention computes again in backward (the scores); torch's counter adds it."""
    checkpointing_flops_per_unit: float
    """What checkpointing: full (layers/activation_checkpointing.py) computes again in backward; selective nothing."""
    sqrt_time_flops_per_unit: float | None = None
    """The same of sqrt-time; None: no formula."""
    activation_elements_per_unit: float
    """Numbers that autograd holds between forward and backward; eager fp32 on CPU. Fused kernels hold fewer."""
    checkpointed_elements_per_unit: float | None = None
    """The same under full activation checkpointing, at its highest: while one block is rebuilt. None: no formula."""
    sqrt_time_elements_per_unit: float | None = None
    """The same under sqrt-time, while one chunk is rebuilt."""

    def __post_init__(self) -> None:
        """Raises ValueError where a number is no cost: every axis and plan would read it."""
        if self.parameters < 1:
            raise ValueError(f"model.family: the cost of a {self.family} says {self.parameters} parameters")
        for name in ("forward_flops_per_unit", "training_flops_per_unit"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"model.family: the cost of a {self.family} says {getattr(self, name)} {name}")

    def activation_bytes(self, units: int, element: int = 4, checkpointing: str = "none") -> float:
        """Bytes of activations of one micro-batch of that many units; `element` is the size of a number.

        Raises:
            ValueError: where there is no formula for that mode of activation checkpointing.
        """
        formulas = {
            "none": self.activation_elements_per_unit,
            "full": self.checkpointed_elements_per_unit,
            "sqrt-time": self.sqrt_time_elements_per_unit,
        }
        elements = formulas.get(checkpointing)
        if elements is None:
            known = ", ".join(mode for mode, formula in formulas.items() if formula is not None)
            raise ValueError(
                f"checkpointing: the activations of a {self.family} under {checkpointing!r} have no formula "
                f"(there is one for {known}); measure them (models/memory/counted_bytes.py)"
            )
        return elements * units * element


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one whole copy of the training state."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def state_bytes(parameters: int, trainable: int | None = None, weight: int = 4, optimizer: int = 8) -> StateBytes:
    """Bytes that do not depend on the batch: weights, gradients, and what the optimizer holds.

    `trainable` (default: all) parameters have gradients in fp32; `weight` is the size of a stored weight, `optimizer`
    what is held for each trained parameter: 8 are the two moments of AdamW.
    """
    trainable = parameters if trainable is None else trainable
    return StateBytes(weight * parameters, 4 * trainable, optimizer * trainable)
