"""Tokenizers of whole words or single characters, with a vocabulary counted on the training texts."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from reducible.data.errors import DataError
from reducible.data.tokenizer import Tokenizer

UNKNOWN = "<unk>"

# The words that the library's WhitespaceSplit finds. Python, unlike it, counts ASCII 28 to 31 as white space.
_WORD = re.compile(r"[\S\x1c-\x1f]+")


def count_vocabulary(
    texts: Iterable[str], unit: Literal["words", "characters"], most: int | None = None, least_count: int = 1
) -> list[str]:
    """The different words (between white space) or characters, the most frequent first, equal counts by code point.

    `most` limits their number; what is seen fewer than `least_count` times is left out.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text) if unit == "words" else text)
    counts.pop(UNKNOWN, None)  # it has an id already, which a text that spells it is given
    kept = [item for item, count in counts.items() if count >= least_count]
    kept.sort(key=lambda item: (-counts[item], item))
    if not kept:
        raise DataError(f"tokenizer: no {unit} occur {least_count} times or more in the training texts")
    return kept[:most]


def whole(items: Iterable[str], unit: Literal["words", "characters"]) -> Tokenizer:
    """The tokenizer of this vocabulary. Id 0 is the unknown token, the separator is the last."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    vocabulary = {UNKNOWN: 0, **{item: number for number, item in enumerate(items, 1)}}
    library = Library(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    if unit == "words":
        library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # decoded with one space between words
    else:
        library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        library.decoder = decoders.Fuse()
    return Tokenizer(unit, library, len(vocabulary), len(vocabulary) + 1)
