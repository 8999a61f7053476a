"""Entropies that generated texts claim, against enumeration of all texts and against the true model on drawn text."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from reducible.data import generated_text
from reducible.data.chance import ALPHABET
from reducible.data.errors import DataError
from reducible.data.generated_text import GeneratedText
from reducible.data.generated_texts import TEXTS
from reducible.data.grammar import GrammarText
from reducible.data.hidden_markov import HiddenMarkovText
from reducible.data.markov import MarkovText
from reducible.data.rules import RulesText
from reducible.data.sources import Source, groups, listing, read_documents

Text = tuple[int, ...]
SMALL: list[GeneratedText] = [
    MarkovText(documents=1, order=2, symbols=2, length=4, seed=3),
    HiddenMarkovText(documents=1, states=3, symbols=2, length=4),
    HiddenMarkovText(documents=1, states=2, symbols=3, length=6, persistence=0.5, seed=2),
    GrammarText(documents=1, phrases=2, symbols=3, length=7, nesting=0.7),
    GrammarText(documents=1, phrases=3, symbols=2, length=8, sharpness=1, nesting=0.9, seed=4),
    RulesText(documents=1, symbols=2, digits=2, answers=1, length=6),
    RulesText(documents=1, symbols=2, digits=1, answers=2, length=6, seed=1),
]


def next_chances(source: GeneratedText, past: Text) -> np.ndarray:
    """Chances of the next symbol given all before it in the document, straight from the definition."""
    return {"hidden-markov": by_paths, "grammar": by_stack, "rules": by_key, "markov": by_states}[source.kind](
        source, past
    )


def by_states(source: MarkovText, past: Text) -> np.ndarray:
    order, V = source.order, source.symbols
    if len(past) >= order:
        return source.transitions[sum(symbol * V**place for place, symbol in enumerate(reversed(past[-order:])))]
    states = np.array(list(itertools.product(range(V), repeat=order)))
    fits = (states[:, : len(past)] == past).all(axis=1)
    chances = np.bincount(states[fits, len(past)], source.stationary[fits], V)
    return chances / chances.sum()


def by_paths(source: HiddenMarkovText, past: Text) -> np.ndarray:
    """Sum over every path of hidden states."""
    chances = np.zeros(source.symbols)
    for path in itertools.product(range(source.states), repeat=len(past) + 1):
        chance = source.stationary[path[0]]
        for before, after in itertools.pairwise(path):
            chance *= source.transitions[before, after]
        for state, symbol in zip(path, past, strict=False):
            chance *= source.emissions[state, symbol]
        chances += chance * source.emissions[path[-1]]
    return chances / chances.sum()


def by_stack(source: GrammarText, past: Text) -> np.ndarray:
    stack: list[int] = []
    for symbol in past:
        top = stack.pop() if stack else 0
        if source.opens[top, symbol]:
            first, second = source.pairs[top, symbol]
            stack += [second, first]
    return source.rules[stack[-1] if stack else 0]


def by_key(source: RulesText, past: Text) -> np.ndarray:
    letters = [tuple(row + source.symbols * np.arange(source.block)) for row in source.blocks]
    begun = past[len(past) // source.block * source.block :]
    chances = np.zeros(source.symbols * source.block)
    for rule, chance in zip(letters, source.chances, strict=True):
        if rule[: len(begun)] == begun:
            chances[rule[len(begun)]] += chance
    return chances / chances.sum()


def all_texts(source: GeneratedText) -> dict[Text, float]:
    texts: dict[Text, float] = {(): 1.0}
    for _ in range(source.length):
        texts = {
            (*past, symbol): chance * share
            for past, chance in texts.items()
            for symbol, share in enumerate(next_chances(source, past))
            if share > 0
        }
    return texts


def entropy(chances: dict[Text, float]) -> float:
    return -math.fsum(chance * math.log(chance) for chance in chances.values())


def marginal(chances: dict[Text, float], part: Callable[[Text], Text]) -> dict[Text, float]:
    found: dict[Text, float] = defaultdict(float)
    for text, chance in chances.items():
        found[part(text)] += chance
    return found


@pytest.mark.parametrize("source", SMALL, ids=str)
def test_entropies_from_the_start_are_those_of_all_texts(source: GeneratedText) -> None:
    texts = all_texts(source)
    assert math.fsum(texts.values()) == pytest.approx(1, abs=1e-12)
    blocks = [entropy(marginal(texts, lambda text: text[:n])) for n in range(source.length + 1)]  # noqa: B023
    assert source.from_start == pytest.approx(np.diff(blocks), abs=1e-9)
    assert source.document_entropy == pytest.approx(blocks[-1], abs=1e-9)


@pytest.mark.parametrize("longer", [-3, 0, 1])
@pytest.mark.parametrize("source", [source for source in SMALL if source.kind != "grammar"], ids=str)
def test_the_best_loss_in_windows_is_that_of_all_windows(source: GeneratedText, longer: int) -> None:
    """H(tokens 1 .. n | token 0) / n of windows that begin anywhere in separator, document, separator, document ..."""
    texts, around, sequence = all_texts(source), source.length + 1, source.length + longer
    windows: dict[Text, float] = defaultdict(float)
    for start in range(around):  # two documents, of which only what the window shows is told apart
        ends = marginal(texts, lambda text: (-1, *text)[start:][: sequence + 1])  # noqa: B023
        rest = sequence + 1 - (around - start)
        beginnings = marginal(texts, lambda text: (-1, *text)[: max(0, rest)])  # noqa: B023
        for (one, p), (two, q) in itertools.product(ends.items(), beginnings.items()):
            windows[one + two] += p * q / around
    expected = (entropy(windows) - entropy(marginal(windows, lambda window: window[:1]))) / sequence
    assert source.best_loss(sequence) == pytest.approx(expected, abs=1e-9)


DRAWN: list[GeneratedText] = [
    MarkovText(documents=60, order=3, symbols=4, length=400, seed=1),
    HiddenMarkovText(documents=60, length=400, states=3, symbols=5, persistence=0.9),
    GrammarText(documents=60, length=400, nesting=0.8),
    RulesText(documents=400, length=400, exponent=1.0),
]


@pytest.mark.parametrize("source", DRAWN, ids=lambda source: source.kind)
def test_the_true_model_scores_the_entropy_on_drawn_text(source: GeneratedText) -> None:
    """The loss of the true model, by an independent reader, within four standard errors over documents."""
    drawn = Source(generated=source)
    texts = [document.text for file in listing(drawn) for document in read_documents(file, drawn)]
    losses = np.array([score(source, tuple(ALPHABET.index(letter) for letter in text)) for text in texts])
    error = losses.std(ddof=1) / math.sqrt(len(losses))
    assert losses.mean() == pytest.approx(source.document_entropy, abs=4 * error + source.entropy_error * source.length)
    assert error < 0.03 * losses.mean()  # or the test says nothing
    assert losses.mean() / source.length == pytest.approx(source.entropy_rate, rel=0.03)


def score(source: GeneratedText, text: Text) -> float:
    if isinstance(source, HiddenMarkovText):  # the forward algorithm, unnormalised and in logarithms at the end
        alpha, nats = source.stationary, 0.0
        for symbol in text:
            alpha = alpha * source.emissions[:, symbol]
            nats -= math.log(alpha.sum())
            alpha = alpha / alpha.sum() @ source.transitions
        return nats
    if isinstance(source, GrammarText):
        stack, nats = [0], 0.0
        for symbol in text:
            top = stack.pop()
            nats -= math.log(source.rules[top, symbol])
            stack += source.pairs[top, symbol][::-1].tolist() if source.opens[top, symbol] else []
            stack = stack or [0]
        return nats
    if isinstance(source, RulesText):
        nats = nats_of_rules(source)
        return math.fsum(nats[text[place : place + source.block]] for place in range(0, len(text), source.block))
    return -math.fsum(math.log(next_chances(source, text[:place][-4:])[text[place]]) for place in range(len(text)))


@cache
def nats_of_rules(source: RulesText) -> dict[Text, float]:
    blocks = (source.blocks + source.symbols * np.arange(source.block)).tolist()
    weights = [1 / (k + 1) ** (1 + source.exponent) for k in range(len(blocks))]
    total = math.fsum(weights)
    return {tuple(block): -math.log(weight / total) for block, weight in zip(blocks, weights, strict=True)}


def test_the_bounds_of_a_hidden_markov_model_hold_its_rate() -> None:
    """Enumerated bounds of few symbols hold the rate that is simulated, and long contexts come to it from above."""
    for keys in ({}, {"persistence": 0.95, "sharpness": 1}, {"states": 8, "symbols": 4, "seed": 5}):
        source = HiddenMarkovText(documents=1, **keys)
        lower, upper = source.bounds
        assert lower < source.entropy_rate < upper
        assert 0 < source.entropy_error < 0.01
        assert np.all(np.diff(source.from_start) <= 1e-12)
        assert source.from_start[-1] == source.entropy_rate
    alone = HiddenMarkovText(documents=1, states=1, symbols=3)  # without a memory: independent draws
    assert alone.entropy_rate == pytest.approx(-(alone.emissions * np.log(alone.emissions)).sum(), abs=1e-9)
    assert alone.entropy_error < 1e-9


def test_a_sentence_has_the_entropy_of_its_derivations() -> None:
    """All sentences of up to 17 symbols, by expanding every derivation of a grammar that seldom nests."""
    source = GrammarText(documents=1, phrases=2, symbols=2, nesting=0.2, seed=6)
    unfinished, nats, symbols, total = [(1.0, 0, (0,))], 0.0, 0.0, 0.0
    while unfinished:
        chance, length, stack = unfinished.pop()
        if not stack:
            nats, symbols, total = nats - chance * math.log(chance), symbols + chance * length, total + chance
            continue
        for symbol in range(2 if length + len(stack) <= 17 else 0):
            pushed = tuple(source.pairs[stack[0], symbol]) if source.opens[stack[0], symbol] else ()
            unfinished.append((chance * source.rules[stack[0], symbol], length + 1, pushed + stack[1:]))
    assert total == pytest.approx(1, abs=1e-4)
    assert source.sentence_entropy == pytest.approx(nats, rel=3e-3)
    assert source.sentence_length == pytest.approx(symbols, rel=3e-3) and source.sentence_length == pytest.approx(1.25)
    assert source.from_start[-1] == pytest.approx(source.entropy_rate, abs=1e-9)


def test_the_loss_of_known_rules_falls_as_a_power_law() -> None:
    """What is paid for rules not yet learnt, over two decades of rules."""
    source = RulesText(documents=1, symbols=16, digits=3, answers=1, length=1024, exponent=0.5)
    tail = 1 - np.cumsum(source.chances)
    assert math.log(tail[3] / tail[99]) / math.log(100 / 4) == pytest.approx(0.5, abs=0.12)
    assert len(np.unique(source.blocks[:, -1])) == 16
    # The answer is known from the key, so a block costs what its key costs.
    assert source.entropy_rate * source.block == pytest.approx(source.from_start[:3].sum(), abs=1e-9)


@pytest.mark.parametrize("kind", TEXTS)
def test_documents_depend_on_seed_and_number_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated_text, "_FILE_BYTES", 2**16)

    def texts(**keys: int) -> list[str]:
        source = Source(generated=TEXTS[kind](**{"length": 2**12, **keys}))
        files = [file for group in groups(listing(source)) for file in group]
        return [document.text for file in files for document in read_documents(file, source)]

    many = texts(documents=18)  # 16 documents a piece: the second piece changes nothing
    assert texts(documents=16) == many[:16]
    assert len(set(many)) == 18
    assert texts(documents=1, seed=1) != texts(documents=1, seed=2)


def test_the_texts_never_change() -> None:
    """Pinned: another NumPy or platform must generate the same text, or every identity would lie."""
    for kind, text in PINNED.items():
        source = Source(generated=TEXTS[kind](documents=1, length=32))
        assert next(read_documents(listing(source)[0], source)).text == text


PINNED = {
    "markov": "duwedttimaeaoroscafuhmuwolofiect",
    "hidden-markov": "osisststoeestssossstoeeoootosooi",
    "grammar": "arddrhmictwttfsfiftldcrnltnttarw",
    "rules": "ergqDB18ergqDB18ergqDB18ergqDB18",
}


def test_mistakes_are_named() -> None:
    for source, wrong, message in (
        (HiddenMarkovText, {"persistence": 1.0}, r"generated\.persistence: 1.0 is not within"),
        (GrammarText, {"nesting": 1.5}, r"generated\.nesting"),
        (RulesText, {"symbols": 16}, "above the 64 letters"),
        (RulesText, {"length": 100}, r"generated\.length: 100 is not whole blocks .* 96 is"),
    ):
        with pytest.raises(DataError, match=message):
            source(documents=1, **wrong)


@pytest.mark.parametrize("source", SMALL, ids=str)
def test_windows_longer_than_a_document_take_no_longer(source: GeneratedText) -> None:
    """Every further token of a window comes behind a document's separator and costs what a whole document does."""
    length = source.length
    within, two = source.best_loss(length), source.best_loss(length + 2)
    far = source.best_loss(10**15)
    if within is None or two is None or far is None:
        assert (within, two, far) == (None, None, None)
        return
    assert two * (length + 2) - within * length == pytest.approx(2 * source.document_entropy / (length + 1))
    assert far == pytest.approx(source.document_entropy / (length + 1))


def test_a_grammar_whose_entropy_would_take_for_ever_is_refused() -> None:
    with pytest.raises(DataError, match=r"length \* phrases is 262144, above the 131072"):
        GrammarText(documents=1, phrases=256, length=1024)
