"""What inference holds: weights in a number format, and what was read so far: keys and values, or a state."""

from dataclasses import dataclass
from typing import Any

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


def remembered(family: str, config: Any, element: int) -> Remembered:
    """What a model of that family and configuration keeps while it reads, in numbers of `element` bytes.

    Raises:
        ValueError: nothing is known of the family.
    """
    if family == "transformer":
        return Remembered("key-value cache", 0, element * 2 * config.depth * config.kv_heads * config.head_size)
    if family == "encoder-decoder":
        # Keys and values of the targets so far, and of the source, in every layer of the decoder.
        return Remembered(
            "key-value cache, sources as long as targets", 0, element * 2 * 2 * config.depth * config.width
        )
    if family == "recurrent":
        states = 2 if config.cell == "lstm" else 1
        return Remembered("state", element * states * config.depth * config.width, 0)
    if family == "seq2seq":
        looked_at = {"none": 0, "luong": 1, "bahdanau": 2}[config.attention] * config.width
        return Remembered(
            "state, and the source if attended", element * 2 * config.depth * config.width, element * looked_at
        )
    if family == "vae":
        return Remembered("state and latent", element * (2 * config.depth * config.width + config.latent), 0)
    if family == "ssm":
        width = config.transition_width or config.width
        states = 2 * width if config.transition == "lstm" and config.A is None else 0
        return Remembered("latent and state of a particle", element * (config.latents + states), 0)
    if family == "linear-gaussian":
        return Remembered("mean and covariance of the latent, float64", 8 * (config.width + config.width**2), 0)
    raise ValueError(f"family {family!r}: nothing is known of what it remembers; add it to models/cost/inference.py")
