"""Tokenizers that come with checkpoints: llama2.c's against its own algorithm, tokenizer.json, what is refused."""

import struct
from pathlib import Path

import pytest

from reducible.data.errors import DataError
from reducible.data.pretrained_tokenizer import load_pretrained_tokenizer
from reducible.data.tokenizer import Tokenizer, train_bpe


def pieces_of(file: Path) -> list[tuple[float, bytes]]:
    """(score, bytes) by id."""
    raw, at, pieces = file.read_bytes(), 4, []
    while at < len(raw):
        score, length = struct.unpack_from("<fi", raw, at)
        pieces.append((score, raw[at + 8 : at + 8 + length]))
        at += 8 + length
    return pieces


def joined(text: str, pieces: list[tuple[float, bytes]]) -> list[int]:
    """run.c's encode(): characters, else bytes; then always the neighbours whose union has the best score."""
    ids = {piece: token for token, (_, piece) in reversed(list(enumerate(pieces)))}
    tokens: list[int] = []
    for character in " " + text:
        known = ids.get(character.encode())
        tokens += [byte + 3 for byte in character.encode()] if known is None else [known]
    while True:
        best = (-1e10, -1, -1)
        for at in range(len(tokens) - 1):
            union = ids.get(pieces[tokens[at]][1] + pieces[tokens[at + 1]][1])
            if union is not None and pieces[union][0] > best[0]:
                best = (pieces[union][0], union, at)
        if best[1] < 0:
            return tokens
        tokens[best[2] : best[2] + 2] = [best[1]]


TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "def f(x):\n\treturn x  # twice  the   blanks",
    "Ünïcode ☃ and 中文, 1984",
    " begins with a blank",
    "said <s> and </s>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_llama2cs_tokens_are_those_of_its_own_algorithm(datasets, text):
    folder = datasets / "stories260K"
    tokenizer = load_pretrained_tokenizer(folder / "stories260K.bin", 512)
    assert (tokenizer.separator, tokenizer.vocabulary) == (1, 512)
    ids = tokenizer.encode_batch([text])[0].tolist()
    assert ids == joined(text, pieces_of(folder / "tok512.bin"))
    assert tokenizer.decode(ids) == text


def test_bytes_of_llama2cs_tokens_add_up_to_the_text(datasets):
    tokenizer = load_pretrained_tokenizer(datasets / "stories260K" / "stories260K.bin", 512)
    text = TEXTS[0]
    counted = tokenizer.token_bytes()[tokenizer.encode_batch([text])[0]].sum()
    assert counted == len(text.encode()) + 1  # and the blank that it puts before every text


def test_it_survives_saving(datasets, tmp_path):
    tokenizer = load_pretrained_tokenizer(datasets / "stories260K" / "stories260K.bin", 512)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.identity == tokenizer.identity
    assert all((a == b).all() for a, b in zip(again.encode_batch(TEXTS), tokenizer.encode_batch(TEXTS), strict=True))


def test_a_tokenizer_json_beside_the_weights_is_taken(tmp_path):
    train_bpe(["some text of ours, more text"] * 5, 300).save(tmp_path)
    tokenizer = load_pretrained_tokenizer(tmp_path, 400)
    assert tokenizer.decode(tokenizer.encode_batch(["our text"])[0]) == "our text"
    with pytest.raises(DataError, match=r"tokenizer.json: has 2\d\d ids, but the model of .* knows 200"):
        load_pretrained_tokenizer(tmp_path, 200)


def test_a_checkpoint_without_a_tokenizer_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"has no tokenizer beside the weights; it needs tokenizer.json or tok512.bin"):
        load_pretrained_tokenizer(tmp_path / "x.bin", 512)


@pytest.mark.parametrize(
    "content", [b"", b"\x07\x00\x00\x00" + struct.pack("<fi", 0.0, 50) + b"short", b"nonsense!" * 9]
)
def test_a_torn_tokenizer_is_one_line(tmp_path, content):
    (tmp_path / "tok512.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"tok512.bin: not a tokenizer of llama2.c"):
        load_pretrained_tokenizer(tmp_path / "x.bin", 512)
