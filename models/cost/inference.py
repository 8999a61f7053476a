"""What inference holds: weights in a number format, and what was read so far: keys and values, or a state."""

from dataclasses import dataclass

BITS = {"fp32": 32.0, "bf16": 16.0, "int8": 8.0, "nf4": 4.127}
"""Of a weight. nf4 with doubly quantised constants, blocks of 64 (Dettmers et al. 2023)."""


def weight_bytes(parameters: int) -> dict[str, float]:
    """Of a whole model by format; of int8 and nf4 as if every parameter were in it."""
    return {name: bits / 8 * parameters for name, bits in BITS.items()}


@dataclass(frozen=True)
class Remembered:
    """Bytes for one sequence: a fixed part, and one for each token that was read or is looked back at."""

    what: str
    fixed: float
    per_token: float

    def bytes(self, tokens: int) -> float:
        return self.fixed + self.per_token * tokens
