"""Attention's time and memory as formulas, for T positions, width d, h heads and g heads of keys and values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionCost:
    """Of one layer and one sequence, forward, causal masking not exploited (conventions: models/cost/ledger.py)."""

    length: int
    width: int
    heads: int
    key_value_heads: int

    @property
    def projections(self) -> int:
        """FLOPs: q and the output d x d each, k and v d x (g d / h): 8 T d^2 where g = h."""
        shared = self.width * self.width * self.key_value_heads // self.heads
        return 4 * self.length * (self.width * self.width + shared)

    @property
    def products(self) -> int:
        """FLOPs: scores and weighted sum, 2 T^2 (d / h) a head each: 4 T^2 d whatever h is."""
        return 4 * self.length**2 * self.width

    def score_bytes(self, element: int) -> int:
        """Were they written down: h T^2 numbers. With one head T^2: more heads cost memory, not time."""
        return element * self.heads * self.length**2

    def fused_bytes(self, element: int) -> int:
        """Held by flash attention: q, the output, k and v, and in fp32 the logarithm of each row's sum: O(T)."""
        shared = 2 * self.width * self.key_value_heads // self.heads
        return element * self.length * (2 * self.width + shared) + 4 * self.heads * self.length
