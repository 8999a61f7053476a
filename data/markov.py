"""Text from a Markov chain of any order."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reducible.data.chance import random_rows, uniform
from reducible.data.errors import DataError
from reducible.data.generated_text import MOST_SYMBOLS, STATES_LIMIT, GeneratedText
from reducible.data.known_entropy import entropy


@dataclass(frozen=True)
class MarkovText(GeneratedText):
    """Documents from a stationary chain of the given order.

    The chances of the next symbol are a random row for each state (`chance.random_rows`), as predictable as
    `sharpness` says. Entropy rate: Cover & Thomas, Elements of Information Theory, theorem 4.2.4, over states of
    `order` symbols.
    """

    kind = "markov"

    order: int = 2
    symbols: int = 16
    sharpness: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(order=(1, 20), symbols=(2, MOST_SYMBOLS), sharpness=(0, 20))
        if self.symbols**self.order * self.symbols > STATES_LIMIT:
            raise DataError(
                f"generated: symbols ** (order + 1) is {self.symbols ** (self.order + 1)}, above {STATES_LIMIT}"
            )

    @cached_property
    def transitions(self) -> np.ndarray:
        """(states, symbols): chance of the next symbol; a state is the last `order` symbols, oldest first."""
        return random_rows(self.seed, 0, self.symbols**self.order, self.symbols, self.sharpness)

    @cached_property
    def stationary(self) -> np.ndarray:
        """(states,): long-run share of each state. Every chance is positive, so it is unique.

        Raises:
            DataError: the chain stays among a few states for so long that the share of these is not found.
        """
        share = np.full(len(self.transitions), 1 / len(self.transitions))
        before = np.inf
        for step in range(100_000):
            joint = (share[:, None] * self.transitions).reshape(self.symbols, -1, self.symbols)
            following = joint.sum(axis=0).reshape(-1)
            following /= following.sum()
            change = float(np.abs(following - share).sum())
            if change < 1e-15:
                break
            if step % 1000 == 999:
                if change > (0.5 if change < 1e-12 else 0.999) * before:  # what is left is rounding, or it never ends
                    break
                before = change
            share = following
        if change > 1e-12:
            raise DataError(
                f"generated.sharpness: {self.sharpness:g} makes a chain of this seed that stays among few symbols "
                "nearly for ever, so its entropy is not found; choose a smaller one, or another seed"
            )
        return following

    @property
    def entropy_rate(self) -> float:
        return float(-(self.stationary[:, None] * self.transitions * np.log(self.transitions)).sum())

    @cached_property
    def _given(self) -> np.ndarray:
        """(order + 1,) nats of a symbol given the 0, 1, ... `order` symbols before it."""
        blocks = [entropy(self.stationary.reshape(self.symbols**known, -1).sum(axis=1)) for known in range(self.order)]
        blocks.append(entropy(self.stationary))
        return np.append(np.diff(blocks), self.entropy_rate)

    @property
    def from_start(self) -> np.ndarray:
        return self._given[np.minimum(np.arange(self.length), self.order)]

    def inside(self, known: int) -> np.ndarray:
        return self._given[[min(known, self.order)]]

    def _symbols(self, numbers: np.ndarray) -> np.ndarray:
        bounds = np.cumsum(self.transitions, axis=1)[:, :-1]
        position = numbers * np.uint64(self.length + 1)
        share = np.cumsum(self.stationary)[:-1]
        state = np.searchsorted(share, uniform(self.seed, 1, position), side="right")
        indices = np.empty((len(numbers), self.length + self.order), np.uint8)
        for place in range(self.order):
            indices[:, place] = state // self.symbols ** (self.order - 1 - place) % self.symbols
        for place in range(self.order, self.length):
            draw = uniform(self.seed, 1, position + np.uint64(place - self.order + 1))
            symbol = (draw[:, None] >= bounds[state]).sum(axis=1)
            state = (state * self.symbols + symbol) % len(self.transitions)
            indices[:, place] = symbol
        return indices[:, : self.length]
