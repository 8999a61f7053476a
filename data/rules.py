"""Text of many rules, each used more rarely than the one before: the loss falls as a power law of the rules learnt."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reducible.data.chance import uniform
from reducible.data.errors import DataError
from reducible.data.generated_text import MOST_SYMBOLS, GeneratedText
from reducible.data.known_entropy import entropy

_MOST_RULES = 2**16


@dataclass(frozen=True)
class RulesText(GeneratedText):
    """Blocks of a key and its answer, drawn one by one; a document holds whole blocks.

    There are symbols ** digits keys. The key of rank k = 1, 2, ... is drawn with a chance proportional to
    k ** -(1 + exponent), and written with `digits` digits. Its rule is an answer of `answers` symbols, drawn once from
    the seed and then always the same. Each of the digits + answers places has letters of its own, so that a symbol says
    where in its block it stands.

    A model that knows n rules still pays answers * log(symbols) nats for each block of another rule; their share falls
    as n ** -exponent. This is the quantization model of Michaud et al. 2023 and the toy model of Hutter 2021.
    The entropy rate is that of the keys over a block's length, an exact finite sum, since the answers add nothing.
    """

    kind = "rules"

    symbols: int = 8
    digits: int = 4
    answers: int = 4
    exponent: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(symbols=(2, MOST_SYMBOLS), digits=(1, 16), answers=(1, MOST_SYMBOLS), exponent=(0, 10))
        if self.symbols * self.block > MOST_SYMBOLS:
            raise DataError(
                f"generated: symbols * (digits + answers) is {self.symbols * self.block}, above the {MOST_SYMBOLS} "
                "letters that there are"
            )
        if self.symbols**self.digits > _MOST_RULES:
            raise DataError(f"generated: symbols ** digits is {self.symbols**self.digits}, above {_MOST_RULES} rules")
        if self.length % self.block:
            raise DataError(
                f"generated.length: {self.length} is not whole blocks of digits + answers = {self.block}; "
                f"{max(1, self.length // self.block) * self.block} is"
            )

    @property
    def block(self) -> int:
        """Symbols of a key and its answer."""
        return self.digits + self.answers

    @cached_property
    def chances(self) -> np.ndarray:
        """(rules,) chance of each rule, by falling use."""
        weights = np.arange(1, self.symbols**self.digits + 1, dtype=np.float64) ** -(1 + self.exponent)
        return weights / weights.sum()

    @cached_property
    def blocks(self) -> np.ndarray:
        """(rules, block) the symbols of each rule's key and answer, without the letters of their places."""
        rules = np.arange(len(self.chances))
        keys = rules[:, None] // self.symbols ** np.arange(self.digits - 1, -1, -1) % self.symbols
        draws = uniform(self.seed, 30, np.arange(len(rules) * self.answers, dtype=np.uint64))
        answers = (draws * self.symbols).astype(np.int64).reshape(len(rules), self.answers)
        return np.concatenate([keys, answers], axis=1)

    @property
    def entropy_rate(self) -> float:
        return entropy(self.chances) / self.block

    @cached_property
    def _given(self) -> np.ndarray:
        """(block, block) [j, i]: nats of place j of a block, given its places i .. j - 1."""
        found = np.zeros((self.block, self.block))
        for first in range(self.block):
            names, before = np.zeros(len(self.chances), np.int64), 0.0
            for place in range(first, self.block):
                _, names = np.unique(names * self.symbols + self.blocks[:, place], return_inverse=True)
                now = entropy(np.bincount(names, self.chances))
                found[place, first], before = now - before, now
        return found

    @property
    def from_start(self) -> np.ndarray:
        return np.tile(self._given[:, 0], self.length // self.block)

    def inside(self, known: int) -> np.ndarray:
        places = np.arange(self.block)
        return self._given[places, np.maximum(0, places - known)]

    def _symbols(self, numbers: np.ndarray) -> np.ndarray:
        each = self.length // self.block
        counters = numbers[:, None] * np.uint64(each) + np.arange(each, dtype=np.uint64)
        draws = uniform(self.seed, 31, counters)
        rules = np.searchsorted(np.cumsum(self.chances)[:-1], draws, side="right")
        letters = self.blocks + self.symbols * np.arange(self.block)
        return letters[rules].reshape(len(numbers), -1)
