"""How close a model's texts are to their references: BLEU, chrF, exact matches and edits, with intervals.

Everything is in percent. Intervals are from the bootstrap over sentences: 1,000 draws of as many sentences as there
are, with replacement (Koehn 2004). BLEU and chrF are sacreBLEU's, whose signatures name version and settings.

    bleu            corpus BLEU (Papineni et al. 2002; Post 2018)
    chrf            corpus chrF2 (Popovic 2015)
    exact_match     outputs equal to their reference, ignoring white space
    any_error_rate  the other outputs: in grapheme-to-phoneme tasks the word error rate
    edit_rate       edits that turn the outputs' words into the references', divided by the number of words in the
                    references: the word error rate of speech recognition. Words are separated by white space. If they
                    are phonemes, it is the phoneme error rate. It can exceed 100.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 1000


def score_texts(outputs: Sequence[str], references: Sequence[str], tokenize: str, seed: int) -> dict[str, Any]:
    """The scores above, with <name>_low and <name>_high for those with an interval, and sacreBLEU's signatures.

    `tokenize`: sacreBLEU's name of a tokenisation. There must be at least one output.
    """
    from sacrebleu.metrics import BLEU, CHRF

    scores: dict[str, Any] = {}
    draws_DN = resamples(len(outputs), seed)
    for name, metric in (("bleu", BLEU(tokenize=tokenize)), ("chrf", CHRF())):
        scores[name] = float(metric.corpus_score(list(outputs), [list(references)]).score)
        # sacreBLEU's counts for each sentence. Its own bootstrap of these fails if a draw scores 0 (2.6.0:
        # statistics.mean does not know how to add float and float32).
        counts_NS = np.array(metric._extract_corpus_statistics(list(outputs), [list(references)]), float)
        drawn = [metric._compute_score_from_stats(counts_S.tolist()).score for counts_S in draws_DN @ counts_NS]
        scores |= limits(name, drawn)
        scores[f"{name}_signature"] = str(metric.get_signature())
    words = [(output.split(), reference.split()) for output, reference in zip(outputs, references, strict=True)]
    equal_N = np.array([output == reference for output, reference in words], float)
    edits_N = np.array([edit_distance(output, reference) for output, reference in words], float)
    length_N = np.array([len(reference) for _, reference in words], float)
    for name, above_N, below_N in (
        ("exact_match", equal_N, np.ones_like(equal_N)),
        ("edit_rate", edits_N, length_N),
    ):
        scores[name] = 100 * float(above_N.sum()) / max(float(below_N.sum()), 1.0)
        scores |= limits(name, 100 * (draws_DN @ above_N) / np.maximum(draws_DN @ below_N, 1))
    return {**scores, "any_error_rate": 100.0 - scores["exact_match"]}


def resamples(count: int, seed: int) -> np.ndarray:
    """(DRAWS, count) how often each sentence occurs in each draw."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)


def limits(name: str, drawn: Sequence[float] | np.ndarray) -> dict[str, float]:
    """The middle 95 % of the draws: name_low, name_high."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """The fewest insertions, deletions and replacements that turn one sequence into the other (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for place, item in enumerate(one, 1):
        diagonal, row[0] = row[0], place
        for column, wanted in enumerate(other, 1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (item != wanted))
    return row[-1]
