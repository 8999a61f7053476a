"""Text of a probabilistic context-free grammar: nested phrases of any depth, which only a stack can follow."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reducible.data.chance import chosen, random_rows, uniform
from reducible.data.errors import DataError
from reducible.data.generated_text import MOST_SYMBOLS, GeneratedText

_MOST_PLACES = 2**17
"""Phrases times symbols of a document; the time that the entropy takes grows with their square."""


@dataclass(frozen=True)
class GrammarText(GeneratedText):
    """Sentences of a random grammar, one after the other; a document begins with a sentence and is cut at its length.

    Each of the `phrases` A has a rule for each symbol a: A -> a, or A -> a B C. B and C are phrases; half of the
    symbols (rounded down, others for each A) open such a pair, with a total chance of `nesting` / 2. A sentence is
    what phrase 0 derives. `sharpness` says how predictable the rules of a phrase are.

    It is a simple grammar (Korenjak & Hopcroft 1966): the next symbol and the phrase on top of the stack name the
    rule, so each text has one derivation and a reader who knows the past knows the stack. So the entropy of the next
    symbol is that of the top's rules. A rule leaves `nesting` phrases on average, below 1, so the grammar is consistent
    (Booth & Thompson 1973), and phrases are used (I - M)^-1 times in a sentence, where M are a rule's expected phrases.
    The entropy of a sentence is the sum over uses of each phrase's entropy (Grenander 1967; Soule 1974), and the
    entropy rate is that over the expected length (renewal theorem). All of it is exact.
    """

    kind = "grammar"

    phrases: int = 8
    symbols: int = 16
    sharpness: float = 2.0
    nesting: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(phrases=(1, 256), symbols=(2, MOST_SYMBOLS), sharpness=(0, 20), nesting=(0, 0.99))
        if self.length * self.phrases > _MOST_PLACES:
            raise DataError(
                f"generated: length * phrases is {self.length * self.phrases}, above the {_MOST_PLACES} of which the "
                "entropy is computed"
            )

    @cached_property
    def opens(self) -> np.ndarray:
        """(phrases, symbols): whether the symbol opens a pair of phrases."""
        draws = uniform(self.seed, 22, np.arange(self.phrases * self.symbols, dtype=np.uint64))
        ranks = draws.reshape(self.phrases, self.symbols).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        return ranks < self.symbols // 2

    @cached_property
    def rules(self) -> np.ndarray:
        """(phrases, symbols): chance of the rule that begins with the symbol."""
        weights = random_rows(self.seed, 20, self.phrases, self.symbols, self.sharpness)
        opening, closing = np.where(self.opens, weights, 0), np.where(self.opens, 0, weights)
        share = self.nesting / 2
        return share * opening / opening.sum(axis=1, keepdims=True) + (1 - share) * closing / closing.sum(
            axis=1, keepdims=True
        )

    @cached_property
    def pairs(self) -> np.ndarray:
        """(phrases, symbols, 2): the phrases B and C of each rule; those of a symbol that opens none mean nothing."""
        draws = uniform(self.seed, 21, np.arange(self.phrases * self.symbols * 2, dtype=np.uint64))
        return (draws * self.phrases).astype(np.int64).reshape(self.phrases, self.symbols, 2)

    @cached_property
    def _followed(self) -> np.ndarray:
        """(phrases, phrases, phrases): chance that a rule of A leaves B and then C."""
        found = np.zeros((self.phrases,) * 3)
        for phrase, symbol in np.argwhere(self.opens):
            found[phrase, *self.pairs[phrase, symbol]] += self.rules[phrase, symbol]
        return found

    @cached_property
    def uses(self) -> np.ndarray:
        """(phrases,) how often each is used in a sentence, on average. Each use writes one symbol."""
        expected = self._followed.sum(axis=2) + self._followed.sum(axis=1)
        start = np.eye(self.phrases)[0]
        return np.linalg.solve((np.eye(self.phrases) - expected).T, start)

    @cached_property
    def _nats(self) -> np.ndarray:
        """(phrases,) entropy of the rules of each."""
        return -(self.rules * np.log(np.maximum(self.rules, 1e-300))).sum(axis=1)

    @property
    def sentence_length(self) -> float:
        """Expected symbols of a sentence: 1 / (1 - nesting)."""
        return float(self.uses.sum())

    @property
    def sentence_entropy(self) -> float:
        """Nats of a sentence."""
        return float(self.uses @ self._nats)

    @property
    def entropy_rate(self) -> float:
        return self.sentence_entropy / self.sentence_length

    @cached_property
    def from_start(self) -> np.ndarray:
        """The phrase on top of the stack at each place is a sum over derivations: A is on top of itself at 0, then B
        is derived, and C when B has ended; likewise from the next sentence on when one has ended."""
        T, P = self.length, self.phrases
        ended = np.zeros((T + 1, P))  # [t, A]: chance that what A derives has t symbols
        nats = np.zeros((T, P))  # [t, A]: expected nats at place t of what A derives; 0 behind its end
        leaf, pairs = 1 - self._followed.sum(axis=(1, 2)), self._followed
        for t in range(1, T + 1):
            if t == 1:
                ended[1] = leaf
                nats[0] = self._nats
                continue
            # Symbol 0 is the rule's own; B has s symbols and C the remaining t - 1 - s.
            both = ended[1 : t - 1].T @ ended[t - 2 : 0 : -1] if t > 2 else np.zeros((P, P))
            ended[t] = np.einsum("abc,bc->a", pairs, both)
            # Place t - 1 of A is place t - 2 of B, or place t - 2 - s of C if B has ended after s symbols.
            later = ended[1 : t - 1].T @ nats[t - 3 :: -1][: t - 2] if t > 2 else np.zeros((P, P))
            nats[t - 1] = np.einsum("abc,b->a", pairs, nats[t - 2]) + np.einsum("abc,bc->a", pairs, later)
        total = np.zeros(T)
        for t in range(T):
            total[t] = nats[t, 0] + float(ended[1 : t + 1, 0] @ total[:t][::-1])
        return total

    def _symbols(self, numbers: np.ndarray) -> np.ndarray:
        rows = np.arange(len(numbers))
        stack = np.zeros((len(numbers), self.length + 2), np.uint8)
        depth = np.zeros(len(numbers), np.int64)  # phrases below the top one
        symbols = np.empty((len(numbers), self.length), np.uint8)
        for place in range(self.length):
            top = stack[rows, depth]
            draw = uniform(self.seed, 23, numbers * np.uint64(self.length) + np.uint64(place))
            symbol = chosen(self.rules[top], draw)
            symbols[:, place] = symbol
            opened = self.opens[top, symbol]
            first, second = self.pairs[top, symbol].T
            stack[rows, depth] = np.where(opened, second, stack[rows, depth])
            depth += np.where(opened, 1, -1)
            stack[rows, depth] = np.where(opened, first, stack[rows, depth])
            empty = depth < 0
            stack[empty, 0], depth[empty] = 0, 0  # the next sentence
        return symbols
