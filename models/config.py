"""The keys of a recipe's section as a frozen dataclass: how values are checked, and what the planner asks of them."""

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

LARGEST = 2**24
"""Of a width or a vocabulary: torch can still count the bytes of a matrix of two such sides, four times over."""
DEEPEST = 2**14
"""The most layers, which are Python objects."""


@dataclass(frozen=True)
class Checked:
    """Keys that name themselves where a value makes no sense: `model.width: 0 must be a whole number of at least 1`."""

    section: ClassVar[str]
    """Stands before the name of a key in a message."""

    def require_whole(self, *names: str, least: int = 1, most: int = LARGEST, or_none: bool = False) -> None:
        """Raises ValueError unless each is a whole number within these limits, or None where that is allowed."""
        for name in names:
            value = getattr(self, name)
            if value is None and or_none:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                left_out = ", or left out" if or_none else ""
                self.refuse(name, f"a whole number of at least {least}{left_out}")
            if value > most:
                self.refuse(name, f"at most {most:,}")

    def require_number(
        self,
        *names: str,
        least: float | None = None,
        above: float | None = None,
        below: float | None = None,
        most: float | None = None,
    ) -> None:
        """Raises ValueError unless each is a finite number inside these limits."""
        for name in names:
            value = getattr(self, name)
            inside = (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and float("-inf") < value < float("inf")
                and (least is None or value >= least)
                and (above is None or value > above)
                and (below is None or value < below)
                and (most is None or value <= most)
            )
            if not inside:
                limits = {"at least": least, "above": above, "below": below, "at most": most}
                said = [f"{words} {limit:g}" for words, limit in limits.items() if limit is not None]
                self.refuse(name, " and ".join(said) or "a number")

    def require_flag(self, *names: str) -> None:
        """Raises ValueError unless each is true or false."""
        for name in names:
            if not isinstance(getattr(self, name), bool):
                self.refuse(name, "true or false")

    def require_one_of(self, name: str, allowed: Collection[str]) -> None:
        """Raises ValueError unless the value is one of these."""
        if getattr(self, name) not in allowed:
            self.refuse(name, " or ".join(allowed) if len(allowed) < 3 else f"one of {', '.join(allowed)}")

    def refuse(self, name: str, wanted: str) -> None:
        raise ValueError(f"{self.section}.{name}: {getattr(self, name)!r} must be {wanted}")


class AttentionShape(NamedTuple):
    """Heads of self-attention, for the formulas of models/cost/attention.py."""

    heads: int
    key_value_heads: int


@dataclass(frozen=True)
class ModelConfig(Checked):
    """The keys of a recipe's `model`: a frozen dataclass that extends this one, `width` among its fields.

    Its __post_init__ raises ValueError where a value makes no model. The methods are what the planner and the ladder
    of sizes ask; each default is right for any family, though perhaps slow.
    """

    section: ClassVar[str] = "model"
    repeated: ClassVar[str | None] = None
    """The field that says how many equal blocks stand on each other, such as depth. The planner then rehearses two
    shallow models in place of a deep one. None: it rehearses the model as it is."""
    looks_back: ClassVar[bool] = False
    """Whether a loop over time looks at a source in every step, so that what it takes grows with both lengths."""

    if TYPE_CHECKING:

        @property
        @abstractmethod
        def width(self) -> int:
            """The dial of the ladder of sizes."""

    def scaled(self, width: int) -> Self:
        """The ladder: this config at another width, and whatever else grows with it.

        Raises:
            ValueError: such a width makes no model.
        """
        changes: dict[str, Any] = {"width": width}
        return replace(self, **changes)

    @property
    def blocks(self) -> int:
        """How many equal blocks there are; 0: none are known."""
        return 0 if self.repeated is None else int(getattr(self, self.repeated))

    def with_blocks(self, count: int) -> Self:
        """The same model with another number of equal blocks."""
        if self.repeated is None:
            raise ValueError("a configuration without `repeated` has no number of blocks to change")
        changes: dict[str, Any] = {self.repeated: count}
        return replace(self, **changes)

    @property
    def piece(self) -> int | None:
        """Steps that a model takes at a time in forward and backward (Model.pieces). None: all."""
        return None

    @property
    def attention_shape(self) -> AttentionShape | None:
        """Of the self-attention in every block. None: there is none."""
        return None
