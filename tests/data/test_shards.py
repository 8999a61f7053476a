"""Token shards: what goes in comes out, in the split its content decides, and damage never passes unseen."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reducible.data import shards
from reducible.data.errors import DataError
from reducible.data.hashes import verify_splits
from reducible.data.shards import SPLITS, open_split, statistics, tokenise_files, write_shard
from reducible.data.sources import Document, Source, groups, listing
from reducible.data.split import content_key
from reducible.data.tokenizer import Tokenizer, byte_tokenizer, train_bpe

BYTES = byte_tokenizer()
BPE = train_bpe(["the cat sat on the mat, the rat ate the hat\n"] * 20, 290)


def documents_of(folder: Path, split: str, tokenizer: Tokenizer) -> list[str]:
    """Reads a shard back by hand: the pieces between separators, decoded."""
    parts = open_split(folder, split, tokenizer.identity)
    tokens = np.concatenate(parts) if parts else np.array([], np.int64)
    assert not len(tokens) or tokens[0] == tokenizer.separator
    starts = np.flatnonzero(tokens == tokenizer.separator)
    return [tokenizer.decode(piece) for piece in np.split(tokens, starts)[1:]]


@settings(max_examples=50)
@given(texts=st.lists(st.text(max_size=40), max_size=20), fraction=st.sampled_from([0.0, 0.3, 1.0]))
@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_every_document_comes_back_in_its_split(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, texts: list[str], fraction: float
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    counts = write_shard([Document("", text) for text in texts], tokenizer, folder, validation=fraction)
    for split, wanted in (("train", False), ("validation", True)):
        expected = [text for text in texts if text and (content_key(text.encode()) / 2**64 < fraction) == wanted]
        assert documents_of(folder, split, tokenizer) == expected
        found = counts["splits"][split]
        assert found["documents"] == len(expected)
        assert found["bytes"] == sum(len(text.encode()) for text in expected)
        parts = open_split(folder, split, tokenizer.identity)
        assert found["tokens"] == sum(map(len, parts))
        assert tokenizer.token_bytes()[np.concatenate(parts)].sum() == found["bytes"] if parts else True
    assert counts["empty"] == texts.count("")
    assert statistics(folder) == json.loads(json.dumps(counts))


def test_a_document_never_moves_when_data_is_added(tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(300)]

    def validating(name: str, texts: list[str]) -> set[str]:
        write_shard([Document("", text) for text in texts], BYTES, tmp_path / name, validation=0.2)
        return set(documents_of(tmp_path / name, "validation", BYTES))

    before = validating("before", texts)
    after = validating("after", [f"new {number}" for number in range(100)] + texts[::-1])
    assert before == after & set(texts)
    assert 30 < len(before) < 90


def test_equal_documents_never_straddle_and_held_out_ones_are_not_trained_on(tmp_path: Path) -> None:
    copies = [Document("", f"text {number % 50}") for number in range(500)]
    write_shard(copies, BYTES, tmp_path / "copies", validation=0.3)
    train, validation = (set(documents_of(tmp_path / "copies", split, BYTES)) for split in SPLITS)
    assert train and validation and not train & validation

    held_out = np.array([content_key(b"text 3"), content_key(b"elsewhere")], np.uint64)
    counts = write_shard(copies, BYTES, tmp_path / "forced", split="train", held_out=held_out)
    assert counts["held_out"] == 10
    assert set(documents_of(tmp_path / "forced", "train", BYTES)) == {f"text {n}" for n in range(50)} - {"text 3"}
    assert documents_of(tmp_path / "forced", "validation", BYTES) == []


@pytest.mark.parametrize(
    ("vocabulary", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_the_smallest_sufficient_integer(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    class Fake(Tokenizer):
        def encode_batch(self, texts):  # type: ignore[no-untyped-def]
            return [np.array([vocabulary - 2], self.dtype) for _ in texts]

    tokenizer = Fake("bytes", None, vocabulary - 1, vocabulary)
    write_shard([Document("", "x")], tokenizer, tmp_path, split="train")
    (part,) = open_split(tmp_path, "train", tokenizer.identity)
    assert part.dtype == dtype
    assert part.tolist() == [vocabulary - 1, vocabulary - 2]


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    write_shard([Document("", "text")], BYTES, tmp_path, split="train")
    with pytest.raises(DataError, match="made with tokenizer .* is asked for"):
        open_split(tmp_path, "train", BPE.identity)


def test_a_torn_file_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    write_shard([Document("", "some text " * 30)], BYTES, tmp_path, split="train")
    path = tmp_path / "train.arrow"
    whole = path.read_bytes()
    for length in range(0, len(whole), 17):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"train\.arrow"):
            open_split(tmp_path, "train", BYTES.identity)
        with pytest.raises(DataError, match="torn"):
            verify_splits(tmp_path, statistics(tmp_path)["splits"])
    path.unlink()
    with pytest.raises(DataError, match=r"train\.arrow"):
        open_split(tmp_path, "train", BYTES.identity)
    path.write_bytes(whole)
    verify_splits(tmp_path, statistics(tmp_path)["splits"])


def test_one_altered_byte_fails_verification(tmp_path: Path) -> None:
    write_shard([Document("", "some text " * 30)], BYTES, tmp_path, split="train")
    path = tmp_path / "train.arrow"
    whole = bytearray(path.read_bytes())
    for place in range(0, len(whole), 29):
        altered = bytearray(whole)
        altered[place] ^= 1
        path.write_bytes(altered)
        with pytest.raises(DataError, match="altered"):
            verify_splits(tmp_path, statistics(tmp_path)["splits"])


def test_reading_is_memory_mapped_and_holds_no_file_descriptor(tmp_path: Path) -> None:
    write_shard([Document("", "text " * 400_000)], BYTES, tmp_path, split="train")
    before, allocated = len(os.listdir("/proc/self/fd")), pyarrow.total_allocated_bytes()
    parts = open_split(tmp_path, "train", BYTES.identity)
    assert len(os.listdir("/proc/self/fd")) == before
    assert pyarrow.total_allocated_bytes() - allocated < 10_000
    assert int(parts[0][1]) == ord("t")


def test_the_same_input_makes_the_same_bytes(tmp_path: Path) -> None:
    texts = [Document("", f"text {number}") for number in range(100)]
    one = write_shard(texts, BPE, tmp_path / "one")
    assert one == write_shard(iter(texts), BPE, tmp_path / "two")


def test_batches_and_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [Document("", f"text {number} " * 9) for number in range(100)]
    whole = write_shard(texts, BPE, tmp_path / "whole")
    monkeypatch.setattr(shards, "_BATCH_BYTES", 100)
    monkeypatch.setattr(shards, "_CHUNK_TOKENS", 64)
    pieces = write_shard(texts, BPE, tmp_path / "pieces")
    assert len(open_split(tmp_path / "pieces", "train", BPE.identity)) > 5
    for split in SPLITS:
        assert pieces["splits"][split]["content"] == whole["splits"][split]["content"]


def test_from_files_with_what_was_skipped_by_name(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for number in range(20):
        (inputs / f"{number:02d}.txt").write_text(f"text {number}")
    (inputs / "07.txt").write_bytes(b"caf\xe9")
    source = Source(str(inputs), on_error="skip")
    files = listing(source)
    found: list[str] = []
    for number, group in enumerate(groups(files)):
        counts = tokenise_files(group, source, BYTES, tmp_path / str(number), split="train")
        found += documents_of(tmp_path / str(number), "train", BYTES)
        if any(file.name == "07.txt" for file in group):
            assert counts["skipped"] == 1
            assert counts["skipped_inputs"] == ["07.txt: not UTF-8 (byte 0xe9 at offset 3)"]
    assert found == [f"text {number}" for number in range(20) if number != 7]
    with pytest.raises(DataError, match=r"07\.txt: not UTF-8"):
        tokenise_files(files, Source(str(inputs)), BYTES, tmp_path / "refused")
