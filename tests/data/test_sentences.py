"""Sentences are the documents of the shards, one a row: against a naive reading of the same texts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reducible.data import shards
from reducible.data.errors import DataError
from reducible.data.packing import IGNORE
from reducible.data.sentences import Sentences
from reducible.data.shards import write_shard
from reducible.data.sources import Document
from reducible.data.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


def written(folder: Path, groups: list[list[str]]) -> list[Path]:
    folders = [folder / str(number) for number in range(len(groups))]
    for place, texts in zip(folders, groups, strict=True):
        write_shard([Document("", text) for text in texts], TOKENIZER, place, split="train")
    return folders


def sentences(folders: list[Path], sequence: int) -> Sentences:
    return Sentences(folders, "train", sequence, TOKENIZER.identity, TOKENIZER.separator)


texts = st.lists(st.lists(st.text(max_size=12), max_size=6), min_size=1, max_size=4)


@given(groups=texts, sequence=st.integers(1, 20), chunk=st.sampled_from([1, 7, 2**22]))
def test_rows_are_the_documents(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[str]], sequence: int, chunk: int
) -> None:
    before, shards._CHUNK_TOKENS = shards._CHUNK_TOKENS, chunk
    try:
        examples = sentences(written(tmp_path_factory.mktemp("sentences"), groups), sequence)
    finally:
        shards._CHUNK_TOKENS = before
    documents = [list(text.encode()) for texts in groups for text in texts if text]
    assert len(examples) == len(documents)
    assert examples.cut == sum(len(document) + 1 > sequence for document in documents)
    if not documents:
        return
    expected = [(document + [256])[:sequence] for document in documents]
    assert examples.lengths.tolist() == examples.sizes.tolist() == [len(row) for row in expected]
    batch = examples.batch(np.arange(len(documents)))
    longest = max(map(len, expected))
    assert batch["inputs"].shape == batch["targets"].shape == (len(documents), longest)
    for row, targets in enumerate(expected):
        assert batch["targets"][row].tolist() == targets + [IGNORE] * (longest - len(targets))
        read = ([256] + documents[row])[: len(targets)]
        assert batch["inputs"][row].tolist() == read + [256] * (longest - len(targets))
    assert examples.units(batch) == sum(map(len, expected))


def test_a_batch_is_as_long_as_its_longest_row(tmp_path: Path) -> None:
    examples = sentences(written(tmp_path, [["abcdef", "ab", "a"]]), 64)
    assert examples.batch(np.array([1, 2]))["inputs"].shape == (2, 3)
    for index in (-1, 3):
        with pytest.raises(IndexError):
            examples.batch(np.array([index]))


def test_the_fingerprint_is_of_the_content_only(tmp_path: Path) -> None:
    one = sentences(written(tmp_path / "one", [["first", "second"]]), 8).fingerprint
    assert sentences(written(tmp_path / "same", [["first", "second"]]), 8).fingerprint == one
    assert sentences(written(tmp_path / "other", [["first", "secund"]]), 8).fingerprint != one
    assert sentences([tmp_path / "one/0"], 9).fingerprint != one


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.sequence: 0"):
        sentences(written(tmp_path, [["text"]]), 0)
    with pytest.raises(DataError, match="no token shards"):
        sentences([], 4)
