"""The generated source: its entropy rate is exact, and its text has it."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from reducible.data.errors import DataError
from reducible.data.markov import MarkovText
from reducible.data.sources import Source, groups, listing, read_documents

CHAINS = [
    MarkovText(documents=4, order=1, symbols=2, length=5),
    MarkovText(documents=4, order=1, symbols=5, sharpness=4, length=4),
    MarkovText(documents=4, order=2, symbols=3, seed=7, length=6),
    MarkovText(documents=4, order=3, symbols=2, seed=1, length=2),
]


def block_probabilities(chain: MarkovText, length: int) -> dict[tuple[int, ...], float]:
    """Chance of every block of symbols, from the transitions alone: the start by an eigenvector, then products."""
    order, symbols = chain.order, chain.symbols
    states = list(itertools.product(range(symbols), repeat=order))
    number = {state: index for index, state in enumerate(states)}
    matrix = np.zeros((len(states), len(states)))
    for state in states:
        for symbol in range(symbols):
            matrix[number[state], number[(*state, symbol)[1:]]] += chain.transitions[number[state], symbol]
    values, vectors = np.linalg.eig(matrix.T)
    start = np.real(vectors[:, np.argmin(abs(values - 1))])
    start /= start.sum()
    chances: dict[tuple[int, ...], float] = {}
    for block in itertools.product(range(symbols), repeat=max(length, order)):
        chance = start[number[block[:order]]]
        for place in range(order, len(block)):
            chance *= chain.transitions[number[block[place - order : place]], block[place]]
        chances[block[:length]] = chances.get(block[:length], 0.0) + chance
    return chances


def entropy(chances: dict[tuple[int, ...], float]) -> float:
    return -math.fsum(chance * math.log(chance) for chance in chances.values() if chance > 0)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_entropy_rate_is_the_growth_of_block_entropy(chain: MarkovText) -> None:
    """H(n + 1) - H(n) over blocks longer than the order, by enumeration of every block."""
    growth = entropy(block_probabilities(chain, chain.order + 4)) - entropy(block_probabilities(chain, chain.order + 3))
    assert chain.entropy_rate == pytest.approx(growth, abs=1e-12)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_document_entropy_is_that_of_all_documents(chain: MarkovText) -> None:
    assert chain.document_entropy == pytest.approx(entropy(block_probabilities(chain, chain.length)), abs=1e-11)


def test_uniform_and_the_default() -> None:
    assert MarkovText(documents=1, symbols=8, sharpness=0).entropy_rate == pytest.approx(math.log(8), abs=1e-12)
    default = MarkovText(documents=1)
    assert np.allclose(default.transitions.sum(axis=1), 1, atol=1e-14)
    assert 1.0 < default.entropy_rate < math.log(16)


def test_generated_text_has_the_chances_and_the_entropy() -> None:
    chain = MarkovText(documents=400, order=2, symbols=4, length=2000, seed=3)
    source = Source(generated=chain)
    texts = [document.text for file in listing(source) for document in read_documents(file, source)]
    assert len(texts) == 400 and {len(text) for text in texts} == {2000}
    letters = {letter: index for index, letter in enumerate("etao")}
    # Log loss of the true chances on the text: its mean is the entropy rate, its error shrinks with the text.
    losses, following = [], Counter()
    for text in texts:
        symbols = [letters[letter] for letter in text]
        for a, b, c in zip(symbols, symbols[1:], symbols[2:], strict=False):
            losses.append(-math.log(chain.transitions[a * 4 + b, c]))
            following[a * 4 + b, c] += 1
    assert np.mean(losses) == pytest.approx(chain.entropy_rate, abs=5 * np.std(losses) / math.sqrt(len(losses)))
    # Plug-in entropy of the counts knows nothing of the chain's own numbers.
    states = Counter()
    for (state, _), count in following.items():
        states[state] += count
    plug_in = -sum(n * math.log(n / states[state]) for (state, _), n in following.items()) / len(losses)
    assert plug_in == pytest.approx(chain.entropy_rate, abs=0.005)
    # Documents start in the stationary distribution, so that no position is special.
    starts = Counter(text[:2] for text in texts)
    expected = {x + y: chain.stationary[letters[x] * 4 + letters[y]] * 400 for x in "etao" for y in "etao"}
    assert sum((starts[pair] - mean) ** 2 / mean for pair, mean in expected.items()) < 45  # chi-square, 15 degrees


def test_documents_depend_on_seed_and_number_alone() -> None:
    few, many = MarkovText(documents=1500), MarkovText(documents=2500)

    def texts(chain: MarkovText) -> list[str]:
        source = Source(generated=chain)
        return [document.text for file in listing(source) for document in read_documents(file, source)]

    assert texts(few) == texts(many)[:1500]
    assert len(set(texts(many))) == 2500
    assert texts(MarkovText(documents=3, seed=1)) != texts(MarkovText(documents=3, seed=2))
    # More documents leave the full pieces as they were, so that finished shards stay finished.
    assert listing(Source(generated=few))[:1] == listing(Source(generated=many))[:1]
    assert listing(Source(generated=MarkovText(documents=1500, seed=1)))[0] != listing(Source(generated=few))[0]
    assert [file for group in groups(listing(Source(generated=many))) for file in group] == listing(
        Source(generated=many)
    )


def test_the_text_never_changes() -> None:
    """Pinned: another NumPy or platform must generate the same text, or every identity would lie."""
    chain = MarkovText(documents=2, length=40)
    source = Source(generated=chain)
    (file,) = listing(source)
    assert [document.text for document in read_documents(file, source)] == PINNED


PINNED = ["duwedttimaeaoroscafuhmuwolofiectrisdwreo", "himasefcrtefmrwmadsrlouwinfiecshcsamcwni"]


def test_mistakes_are_named() -> None:
    for wrong, message in (
        ({"documents": 0}, r"generated\.documents: 0 is not within"),
        ({"documents": 1, "symbols": 65}, r"generated\.symbols"),
        ({"documents": 1, "symbols": 64, "order": 4}, r"symbols \*\* \(order \+ 1\)"),
        ({"documents": 1, "sharpness": -1.0}, r"generated\.sharpness"),
    ):
        with pytest.raises(DataError, match=message):
            MarkovText(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="either a location"):
        Source("x.txt", generated=MarkovText(documents=1))


def test_a_chain_that_hardly_ever_leaves_some_symbols_is_refused() -> None:
    """Power iteration does not find its stationary distribution, and everything else would be silently wrong."""
    with pytest.raises(DataError, match="^generated.sharpness: 20 makes a chain"):
        _ = MarkovText(documents=1, order=1, symbols=2, sharpness=20).entropy_rate
    sharp = MarkovText(documents=1, order=2, symbols=4, sharpness=20)
    values, vectors = np.linalg.eig(_over_states(sharp).T)
    stationary = np.real(vectors[:, np.argmin(abs(values - 1))])
    np.testing.assert_allclose(sharp.stationary, stationary / stationary.sum(), atol=1e-9)


def _over_states(text: MarkovText) -> np.ndarray:
    """(states, states) chance of the state that follows."""
    chances = np.zeros((len(text.transitions),) * 2)
    for state, row in enumerate(text.transitions):
        for symbol, chance in enumerate(row):
            chances[state, (state * text.symbols + symbol) % len(chances)] = chance
    return chances
