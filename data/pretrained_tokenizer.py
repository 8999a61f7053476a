"""The tokenizer of a pretrained checkpoint: tokenizer.json, the one inside a GGUF, or llama2.c's tok*.bin."""

import json
import struct
from pathlib import Path

from reducible.data.errors import DataError
from reducible.data.tokenizer import Tokenizer, from_file, from_library

SEPARATORS = ("<|endoftext|>", "<|begin_of_text|>", "<s>")
"""Tokens that separate documents in pretraining, in order of preference."""


def tokenizer_files(path: Path, vocabulary: int) -> list[Path]:
    """The files that decide the ids. Raises DataError if the checkpoint has no tokenizer beside it."""
    if path.suffix == ".gguf":
        return [path]
    folder = path if path.is_dir() else path.parent
    for name in ("tokenizer.json", f"tok{vocabulary}.bin", "tokenizer.bin"):
        if (folder / name).is_file():
            return [folder / name]
    raise DataError(f"{folder}: has no tokenizer beside the weights; it needs tokenizer.json or tok{vocabulary}.bin")


def load_pretrained_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """The tokenizer of a checkpoint whose model knows `vocabulary` ids. Raises DataError naming the file."""
    (file,) = tokenizer_files(path, vocabulary)
    if file.suffix == ".gguf":
        tokenizer = _from_gguf(file)
    elif file.suffix == ".bin":
        tokenizer = _from_llama2c(file)
    else:
        tokenizer = from_file(file, _separator(file))
    if tokenizer.vocabulary > vocabulary:
        raise DataError(f"{file}: has {tokenizer.vocabulary} ids, but the model of {path} knows {vocabulary}")
    return tokenizer


def _separator(file: Path) -> str | None:
    added = {token["content"] for token in json.loads(file.read_text()).get("added_tokens", [])}
    return next((token for token in SEPARATORS if token in added), None)


def _from_gguf(file: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    library = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).backend_tokenizer
    known = library.get_vocab(with_added_tokens=True)
    separator = next((token for token in SEPARATORS if token in known), None)
    if separator is None:
        raise DataError(f"{file}: its tokenizer has none of {', '.join(SEPARATORS)} to separate documents by")
    return from_library(library, known[separator])


def _from_llama2c(file: Path) -> Tokenizer:
    """SentencePiece BPE: of all neighbours, the two whose union has the best score are joined, again and again.

    The library takes this as a list of merges, sorted by the score of the piece that each makes.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers

    pieces, scores = _llama2c_pieces(file)
    ids = {piece: token for token, piece in reversed(list(enumerate(pieces)))}
    merges = []
    for token, piece in enumerate(pieces):
        if not piece.startswith("<"):  # special tokens and bytes are never made by joining
            cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
            merges += [(-scores[token], ids[a], ids[b], a, b) for a, b in cuts if a in ids and b in ids]
    bpe = models.BPE(
        vocab=ids, merges=[(a, b) for *_, a, b in sorted(merges)], byte_fallback=True, fuse_unk=True, unk_token="<unk>"
    )
    library = Library(bpe)
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return from_library(library, ids["<s>"])


def _llama2c_pieces(file: Path) -> tuple[list[str], list[float]]:
    """Pieces and scores. The file holds the longest piece's length, then (score, length, bytes) for every id; ids 0, 1
    and 2 are <unk>, <s> and </s>."""
    raw, at = file.read_bytes(), 4
    pieces, scores = [], []
    try:
        while at < len(raw):
            score, length = struct.unpack_from("<fi", raw, at)
            text = raw[at + 8 : at + 8 + length].decode()
            if len(text.encode()) != length:
                raise ValueError("it ends inside a piece")
            pieces.append(text.strip("\n") if text.strip("\n") in ("<s>", "</s>") else text.replace(" ", "▁"))
            scores.append(score)
            at += 8 + length
    except (struct.error, ValueError) as error:
        raise DataError(f"{file}: not a tokenizer of llama2.c ({error})") from None
    if pieces[:3] != ["<unk>", "<s>", "</s>"]:
        raise DataError(f"{file}: not a tokenizer of llama2.c (it does not begin with <unk>, <s>, </s>)")
    return pieces, scores
