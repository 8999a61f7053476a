"""Text from a hidden Markov model: a memory that no finite context holds, so that the entropy rate is a limit."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reducible.data.chance import chosen, random_rows, uniform
from reducible.data.generated_text import MOST_SYMBOLS, GeneratedText

_ENUMERATED = 2**20
"""The most numbers that the enumeration of all texts of a length may hold."""
_CHAINS, _STEPS = 2048, 384
"""Simulated texts and their length; the second half of each counts as the long run."""


@dataclass(frozen=True)
class HiddenMarkovText(GeneratedText):
    """A hidden chain of `states` emits a symbol at each step; a document starts in the stationary distribution.

    Chances are random rows (`chance.random_rows`): of the next state, and of the symbol in each state. With chance
    `persistence` the state stays as it is, so that a larger value makes the past count for longer.

    There is no closed form of the entropy rate. Given at most `exact_context` symbols the entropies are exact, by
    enumeration of all texts; they bound the rate from above, and from below if the first state is known too (Cover &
    Thomas, Elements of Information Theory, theorem 4.5.1). Beyond, they are averages of the entropy of the next symbol
    given the forward algorithm's belief (Rabiner 1989) over simulated texts. They are unbiased except for the half of
    each text that counts as its past, and `entropy_error` is three standard errors.
    """

    kind = "hidden-markov"

    states: int = 4
    symbols: int = 8
    sharpness: float = 2.0
    persistence: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within(states=(1, 64), symbols=(2, MOST_SYMBOLS), sharpness=(0, 20), persistence=(0, 0.999))

    @cached_property
    def transitions(self) -> np.ndarray:
        """(states, states): chance of the next state."""
        moves = random_rows(self.seed, 10, self.states, self.states, self.sharpness)
        return self.persistence * np.eye(self.states) + (1 - self.persistence) * moves

    @cached_property
    def emissions(self) -> np.ndarray:
        """(states, symbols): chance of the symbol."""
        return random_rows(self.seed, 11, self.states, self.symbols, self.sharpness)

    @cached_property
    def stationary(self) -> np.ndarray:
        """(states,): pi = pi T. Every chance of a move is positive, so it is unique."""
        equations = np.vstack([self.transitions.T - np.eye(self.states), np.ones(self.states)])
        share = np.linalg.lstsq(equations, np.append(np.zeros(self.states), 1.0), rcond=None)[0]
        return share / share.sum()

    @cached_property
    def exact_context(self) -> int:
        """The longest context whose entropies are enumerated."""
        return max(0, int(np.log(_ENUMERATED / self.states**2) / np.log(self.symbols)) - 1)

    @cached_property
    def _enumerated(self) -> tuple[np.ndarray, float]:
        """(exact_context + 1,) H(X_n | X_0 .. X_n-1), and the last one given the state of X_0 too."""
        # alpha[s, x, k]: chance of the text x and the state k behind it, if X_0 has the state s
        alpha = np.eye(self.states)[:, None, :]
        upper, lower, before = [], 0.0, (0.0, 0.0)
        for _ in range(self.exact_context + 1):
            joint = alpha[:, :, None, :] * self.emissions.T  # (s, x, symbol, k): the symbol enters the text
            texts = joint.sum(axis=-1).reshape(self.states, -1)
            known = float(self.stationary @ _nats(texts))
            unknown = float(_nats(self.stationary @ texts))
            upper.append(unknown - before[0])
            lower, before = known - before[1], (unknown, known)
            alpha = joint.reshape(self.states, -1, self.states) @ self.transitions
        return np.array(upper), lower

    @property
    def bounds(self) -> tuple[float, float]:
        """Proven lower and upper bounds of the entropy rate."""
        upper, lower = self._enumerated
        return lower, float(upper[-1])

    @cached_property
    def _simulated(self) -> np.ndarray:
        """(chains, steps) nats of the next symbol given the belief at each step of texts drawn from it."""
        belief = np.tile(self.stationary, (_CHAINS, 1))
        counter = np.arange(_CHAINS, dtype=np.uint64)
        nats = np.empty((_CHAINS, _STEPS), np.float64)
        for step in range(_STEPS):
            chances = belief @ self.emissions
            nats[:, step] = _nats(chances)
            symbol = chosen(chances, uniform(self.seed, 12, counter + np.uint64(step * _CHAINS)))
            belief = belief * self.emissions.T[symbol]
            belief = (belief / belief.sum(axis=1, keepdims=True)) @ self.transitions
        return nats

    @cached_property
    def _rate(self) -> tuple[float, float]:
        """The rate and its error: from the simulation or from the bounds, whichever is tighter."""
        lower, upper = self.bounds
        chains = self._simulated[:, _STEPS // 2 :].mean(axis=1)
        value, error = float(chains.mean()), 3 * float(chains.std(ddof=1)) / _CHAINS**0.5
        if upper - lower < 2 * error:
            return (lower + upper) / 2, (upper - lower) / 2
        return value, error

    @property
    def entropy_rate(self) -> float:
        return self._rate[0]

    @property
    def entropy_error(self) -> float:
        return self._rate[1]

    @cached_property
    def _given(self) -> np.ndarray:
        """Nats of a symbol given the 0, 1, ... symbols before it: enumerated, then simulated, then the rate."""
        exact = self._enumerated[0]
        simulated = self._simulated[:, len(exact) : _STEPS // 2].mean(axis=0)
        # More context never hurts: each value lies between the rate and the one before.
        falling = np.minimum.accumulate(np.clip(simulated, self.entropy_rate, exact[-1]))
        return np.concatenate([exact, falling, [self.entropy_rate]])

    @property
    def from_start(self) -> np.ndarray:
        return self._given[np.minimum(np.arange(self.length), len(self._given) - 1)]

    def inside(self, known: int) -> np.ndarray:
        return self._given[[min(known, len(self._given) - 1)]]

    def _symbols(self, numbers: np.ndarray) -> np.ndarray:
        position = numbers * np.uint64(2 * self.length)
        symbols = np.empty((len(numbers), self.length), np.uint8)
        first = np.tile(self.stationary, (len(numbers), 1))
        state = np.zeros(len(numbers), np.int64)
        for place in range(self.length):
            moved, emitted = (uniform(self.seed, 13, position + np.uint64(2 * place + which)) for which in (0, 1))
            state = chosen(self.transitions[state] if place else first, moved)
            symbols[:, place] = chosen(self.emissions[state], emitted)
        return symbols


def _nats(chances: np.ndarray) -> np.ndarray:
    """Entropy over the last axis."""
    return -(chances * np.log(np.maximum(chances, 1e-300))).sum(axis=-1)
