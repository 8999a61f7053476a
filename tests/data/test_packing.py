"""Packed examples are the stream of tokens and nothing else: against a naive reading of the same stream."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reducible.data import shards
from reducible.data.errors import DataError
from reducible.data.packing import IGNORE, PackedSequences
from reducible.data.shards import write_shard
from reducible.data.sources import Document
from reducible.data.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


def written(folder: Path, groups: list[list[str]], split: str = "train") -> list[Path]:
    folders = [folder / str(number) for number in range(len(groups))]
    for place, texts in zip(folders, groups, strict=True):
        write_shard([Document("", text) for text in texts], TOKENIZER, place, split=split)  # type: ignore[arg-type]
    return folders


def packed(folders: list[Path], sequence: int, mask: bool = False, split: str = "train") -> PackedSequences:
    return PackedSequences(folders, split, sequence, TOKENIZER.identity, TOKENIZER.separator, mask)


def stream(groups: list[list[str]]) -> list[int]:
    return [token for texts in groups for text in texts if text for token in (256, *text.encode())]


texts = st.lists(st.lists(st.text(max_size=12), max_size=5), min_size=1, max_size=4)


@settings(max_examples=60)
@given(groups=texts, sequence=st.integers(1, 20), chunk=st.sampled_from([1, 7, 2**22]))
def test_windows_are_the_stream(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[str]], sequence: int, chunk: int
) -> None:
    before, shards._CHUNK_TOKENS = shards._CHUNK_TOKENS, chunk
    try:
        folders = written(tmp_path_factory.mktemp("packed"), groups)
    finally:
        shards._CHUNK_TOKENS = before
    tokens = stream(groups)
    examples = packed(folders, sequence, mask=True)
    assert len(examples) == len(range(0, max(0, len(tokens) - 1), sequence))
    if not len(examples):
        return
    batch = examples.batch(np.arange(len(examples)))
    for row in range(len(examples)):
        expected_inputs, expected_targets, document, numbers = [], [], 0, []
        for place in range(row * sequence, (row + 1) * sequence):
            inside = place < len(tokens)
            expected_inputs.append(tokens[place] if inside else 256)
            expected_targets.append(tokens[place + 1] if place + 1 < len(tokens) else IGNORE)
            document += expected_inputs[-1] == 256
            numbers.append(document)
        assert batch["inputs"][row].tolist() == expected_inputs
        assert batch["targets"][row].tolist() == expected_targets
        assert batch["documents"][row].tolist() == numbers
    counted = batch["targets"][batch["targets"] != IGNORE]
    assert counted.tolist() == tokens[1:]  # every token but the first is a target once


def test_shapes_and_types(tmp_path: Path) -> None:
    examples = packed(written(tmp_path, [["a text of some length"] * 9]), 8, mask=True)
    batch = examples.batch(np.array([3, 0, 3]))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "inputs": ((3, 8), "int64"),
        "targets": ((3, 8), "int64"),
        "documents": ((3, 8), "int32"),
    }
    assert "documents" not in packed([tmp_path / "0"], 8).batch(np.array([0]))
    for index in (-1, len(examples)):
        with pytest.raises(IndexError):
            examples.batch(np.array([0, index]))


def test_a_position_and_its_target_belong_to_one_document(tmp_path: Path) -> None:
    """What a masked row predicts at each position is the next token of that position's own document."""
    examples = packed(written(tmp_path, [["abc", "de", "fghi"]]), 12, mask=True)
    batch = examples.batch(np.array([0]))
    per_document: dict[int, list[int]] = {}
    for target, document in zip(batch["targets"][0], batch["documents"][0], strict=True):
        per_document.setdefault(int(document), []).append(int(target))
    assert per_document == {1: [*b"abc", 256], 2: [*b"de", 256], 3: [*b"fghi", IGNORE]}


def test_the_fingerprint_is_of_the_content_only(tmp_path: Path) -> None:
    folders = written(tmp_path / "one", [["first", "second"], ["third"]])
    fingerprint = packed(folders, 8).fingerprint
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere")
    assert packed([tmp_path / "elsewhere" / "0", tmp_path / "elsewhere" / "1"], 8).fingerprint == fingerprint
    others = {
        packed(folders, 9).fingerprint,
        packed(folders[::-1], 8).fingerprint,
        packed(folders[:1], 8).fingerprint,
        packed(written(tmp_path / "two", [["first", "secund"], ["third"]]), 8).fingerprint,
    }
    assert len(others | {fingerprint}) == 5


def test_mistakes_are_named(tmp_path: Path) -> None:
    folders = written(tmp_path, [["text"]])
    with pytest.raises(DataError, match=r"data\.sequence: 0"):
        packed(folders, 0)
    with pytest.raises(DataError, match="no token shards"):
        packed([], 4)
    with pytest.raises(DataError, match="not a token shard"):
        packed([tmp_path / "nowhere"], 4)
