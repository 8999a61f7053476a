"""Tokenizers lose nothing, count bytes exactly, and are the same again from the same documents."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from reducible.data.errors import DataError
from reducible.data.sample import sample_files, sample_texts
from reducible.data.sources import Source, listing, read
from reducible.data.split import content_key, is_validation
from reducible.data.tokenizer import Tokenizer, byte_tokenizer, from_file, train_bpe

TEXT = ["the cat sat on the mat, the rat ate the hat\n", "def f(x):\n    return x + 1\n"] * 20
BPE = train_bpe(TEXT, 320)


def llama_like(path: Path) -> Path:
    """Pieces with a visible space and bytes as a fallback, as SentencePiece models have them."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for piece in [*"▁abcdehlow", "he", "▁he"]:
        vocabulary[piece] = len(vocabulary)
    library = Library(
        models.BPE(vocab=vocabulary, merges=[("h", "e"), ("▁", "he")], unk_token="<unk>", byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.save(str(path))
    return path


@given(st.lists(st.text(), max_size=5))
@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), BPE], ids=["bytes", "bpe"])
def test_text_comes_back_and_its_bytes_add_up(tokenizer: Tokenizer, texts: list[str]) -> None:
    counts = tokenizer.token_bytes()
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert counts[ids].sum() == len(text.encode())
        assert not len(ids) or (ids.dtype == tokenizer.dtype and ids.max() < tokenizer.separator)


def test_bytes_are_bytes() -> None:
    tokenizer = byte_tokenizer()
    assert (tokenizer.vocabulary, tokenizer.separator, tokenizer.dtype) == (257, 256, np.uint16)
    assert tokenizer.encode_batch(["aé"])[0].tolist() == [0x61, 0xC3, 0xA9]
    assert tokenizer.decode([0x61, 256, 0xC3]) == "a\ufffd"


def test_bpe_is_what_the_library_makes(tmp_path: Path) -> None:
    assert BPE.vocabulary <= 320 and BPE.separator == BPE.vocabulary - 1
    (ids,) = BPE.encode_batch(["the cat"])
    assert len(ids) < 7
    BPE.save(tmp_path)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("the cat").ids == ids.tolist()
    assert train_bpe(["a b"], 5000).vocabulary < 300  # fewer where the text has no more to merge
    assert train_bpe(TEXT, 257).vocabulary == 257  # no merge at all
    with pytest.raises(DataError, match=r"tokenizer\.vocabulary: 256 is too small"):
        train_bpe(TEXT, 256)


@given(
    st.lists(
        st.one_of(
            st.text(max_size=40),
            st.text(st.characters(max_codepoint=127), max_size=60),
            st.lists(
                st.sampled_from(["'s", "'ll", "'", " ", "  ", "\n", "\t", "\x0b", "\x1c", "the", "x1", "_", "..."])
            ).map("".join),
            st.sampled_from(["a" * 150, " " * 150 + "x"]),
        ),
        max_size=6,
    )
)
def test_word_by_word_is_what_the_library_encodes(texts: list[str]) -> None:
    assert BPE._library is not None
    expected = [encoding.ids for encoding in BPE._library.encode_batch(texts)]
    for _ in range(2):  # once encoding words, once remembering them
        assert [ids.tolist() for ids in BPE.encode_batch(texts)] == expected


def test_forgetting_words_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the cat sat", "on the mat"]
    before = [ids.tolist() for ids in BPE.encode_batch(texts)]
    monkeypatch.setattr("reducible.data.words._REMEMBERED", 0)
    assert [ids.tolist() for ids in BPE.encode_batch(texts)] == before


def test_training_again_in_another_process_gives_the_same_tokenizer() -> None:
    program = (
        "from reducible.data.tokenizer import train_bpe\nfrom reducible.data.sources import *\n"
        "s = Source('builtin:stdlib')\n"
        "print(train_bpe([d.text for d in read(listing(s)[:60], s, [])], 700).identity)"
    )
    identities = set()
    for threads, hash_seed in (("1", "0"), ("2", "1")):
        environment = {
            **os.environ,
            "TOKENIZERS_PARALLELISM": "true",
            "RAYON_NUM_THREADS": threads,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        identities.add(result.stdout.strip() or result.stderr)
    assert len(identities) == 1 and len(identities.pop()) == 64


def test_a_fork_after_use_warns_nothing() -> None:
    program = (
        "import os; from reducible.data.tokenizer import train_bpe\n"
        "t = train_bpe(['some text'] * 50, 300); t.encode_batch(['text'] * 500)\n"
        "child = os.fork()\n"
        "t.encode_batch(['text'] * 500)\n"
        "os._exit(0) if child == 0 else os.waitpid(child, 0)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["bytes", "bpe", "file"])
def test_saved_and_loaded_is_the_same(tmp_path: Path, kind: str) -> None:
    tokenizer = {"bytes": byte_tokenizer, "bpe": lambda: BPE, "file": lambda: from_file(llama_like(tmp_path / "l"))}[
        kind
    ]()
    tokenizer.save(tmp_path / "saved")
    loaded = Tokenizer.load(tmp_path / "saved")
    assert (loaded.identity, loaded.kind) == (tokenizer.identity, kind)
    assert [ids.tolist() for ids in loaded.encode_batch(TEXT[:2])] == [
        ids.tolist() for ids in tokenizer.encode_batch(TEXT[:2])
    ]


def test_an_altered_or_missing_one_is_refused(tmp_path: Path) -> None:
    BPE.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="altered"):
        Tokenizer.load(tmp_path)
    path.write_text("{}")
    with pytest.raises(DataError, match="not a tokenizer.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(DataError, match="not a saved tokenizer"):
        Tokenizer.load(tmp_path / "nowhere")


def test_identities_differ() -> None:
    one, other = train_bpe(TEXT, 280), train_bpe(TEXT, 281)
    assert len({byte_tokenizer().identity, one.identity, other.identity}) == 3
    assert train_bpe(TEXT, 280).identity == one.identity


def test_an_existing_tokenizer_with_special_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    BPE.save(tmp_path / "bpe")
    library = Library.from_file(str(tmp_path / "bpe" / "tokenizer.json"))
    library.add_special_tokens(["<|endoftext|>"])
    library.add_tokens(["<indent>"])
    library.enable_truncation(4)
    library.enable_padding(length=64)
    library.save(str(path))
    tokenizer = from_file(path, "<|endoftext|>")
    assert tokenizer.separator == library.token_to_id("<|endoftext|>")
    assert tokenizer.vocabulary == library.get_vocab_size()
    text = "the cat <|endoftext|> sat <indent> on the mat"
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.separator not in ids  # text cannot spell a border between documents
    assert tokenizer.decode(ids) == text  # neither cut nor padded
    assert tokenizer.token_bytes()[ids].sum() == len(text)
    assert from_file(path).separator == tokenizer.vocabulary  # without a name an id is added
    with pytest.raises(DataError, match="no token '<eos>'"):
        from_file(path, "<eos>")
    with pytest.raises(DataError, match="does not exist"):
        from_file(tmp_path / "nowhere.json")


def test_byte_fallback_counts_bytes(tmp_path: Path) -> None:
    tokenizer = from_file(llama_like(tmp_path / "tokenizer.json"), "</s>")
    for text in ("hello wörld 🙂", "he </s> lo\n", "a  b"):
        (ids,) = tokenizer.encode_batch([text])
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode()) + 1  # it puts a space before every text
        assert tokenizer.separator not in ids


@pytest.mark.parametrize("loss", ["lowercase", "unknown"])
def test_a_tokenizer_that_loses_text_claims_no_bytes(tmp_path: Path, loss: str) -> None:
    path = tmp_path / "tokenizer.json"
    if loss == "lowercase":
        library = Library.from_file(str(llama_like(path)))
        library.normalizer = normalizers.Lowercase()
    else:
        library = Library(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2}, unk_token="<unk>"))
        library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(path))
    tokenizer = from_file(path)
    assert len(tokenizer.encode_batch(["hello world"])[0]) >= 2
    assert tokenizer.token_bytes().sum() == 0


def test_the_sample_is_training_text_and_stays_when_unrelated_files_come(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number:03d}.txt").write_text(f"document {number} " * 50)
    source = Source(str(tmp_path))
    files = listing(source)
    size = 40_000
    chosen = sample_files(files, size)
    assert size <= sum(file.size for file in chosen) < size + 1000
    assert sample_files(files[::-1], size) == chosen
    texts = list(sample_texts(chosen, source, size, validation=0.3))
    assert not [text for text in texts if is_validation(content_key(text.encode()), 0.3)]
    assert texts == list(sample_texts(chosen, source, size, validation=0.3))
    assert len(texts) > 15
    without = [file for file in files if file in chosen or int(file.name[:3]) % 2]
    assert sample_files(without, size) == chosen  # files that are not of the sample may come and go


def test_the_sample_of_one_long_file_comes_from_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"{number:06d} some words" for number in range(20_000)))
    source = Source(str(tmp_path), documents="line")
    texts = list(sample_texts(listing(source), source, 50_000, validation=0.05))
    assert 30_000 < sum(map(len, texts)) <= 50_000
    numbers = np.array([int(text[:6]) for text in texts])
    assert abs(numbers.mean() - 10_000) < 600 and numbers.max() > 19_000


def test_a_sample_without_training_documents_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only document")
    source = Source(str(tmp_path))
    with pytest.raises(DataError, match="no training document.*paragraph"):
        list(sample_texts(listing(source), source, validation=1.0))
    (tmp_path / "a.txt").write_text("word " * 1000)
    assert [len(text) for text in sample_texts(listing(source), source, 100, validation=0.0)] == [100]


def test_every_document_where_the_sample_is_large_enough() -> None:
    source = Source("builtin:stdlib")
    files = listing(source)[:40]
    assert sorted(sample_texts(files, source, validation=0)) == sorted(
        d.text for d in read(files, source, []) if d.text
    )
