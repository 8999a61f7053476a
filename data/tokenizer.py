"""Text to token ids and back: bytes, byte-level BPE trained here, or an existing tokenizer.json."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reducible.data.errors import DataError

if TYPE_CHECKING:
    import tokenizers

    from reducible.data.words import WordEncoder

# Ray gives each task its cores, so the library starts no threads of its own; with them it also warns at every fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Tokenizer:
    """Ids are 0 .. vocabulary - 1. `separator` opens every document; no text can produce it."""

    def __init__(self, kind: str, library: "tokenizers.Tokenizer | None", separator: int, vocabulary: int) -> None:
        self.kind = kind
        self.separator = separator
        self.vocabulary = vocabulary
        self._library = library
        # Only a BPE that was trained here is known to cut text into words by this pattern.
        self._words = None if kind != "bpe" or library is None else _word_encoder(library, self.dtype)

    @property
    def identity(self) -> str:
        """SHA-256 of everything that decides the ids."""
        definition = "" if self._library is None else json.loads(self._library.to_str())
        content = json.dumps([definition, self.separator, self.vocabulary], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integer that holds every id."""
        return np.min_scalar_type(self.vocabulary - 1)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, without separators."""
        if self._library is None:
            return [np.frombuffer(text.encode(), np.uint8).astype(self.dtype) for text in texts]
        if self._words is not None:
            return self._words.encode(texts)
        encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids; separators are left out, bytes that are not UTF-8 become U+FFFD."""
        kept = [int(token) for token in ids if int(token) != self.separator]
        if self._library is None:
            return bytes(kept).decode(errors="replace")
        return str(self._library.decode(kept, skip_special_tokens=False))

    def token_bytes(self) -> np.ndarray:
        """(vocabulary,) int64: how many bytes of text each id stands for; 0 for separator and special tokens.

        All 0 for a tokenizer that loses text (lower-cases, normalises, has unknown words): its losses are not
        comparable per byte, and dividing by a wrong count would hide that.
        """
        counts = np.ones(self.vocabulary, np.int64)
        if self._library is not None:
            counts = _token_bytes(self._library, self.vocabulary)
            probe = self.encode_batch([_PROBE])[0]
            if self.decode(probe).removeprefix(" ") != _PROBE or counts[probe].sum() - len(_PROBE.encode()) not in (
                0,
                1,
            ):
                counts[:] = 0  # one byte more is the space that some tokenizers put before a text
        counts[self.separator] = 0
        return counts

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self._library is not None:
            (folder / "tokenizer.json").write_text(self._library.to_str(), encoding="utf-8")
        description = {
            "kind": self.kind,
            "separator": self.separator,
            "vocabulary": self.vocabulary,
            "identity": self.identity,
        }
        (folder / "description.json").write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Raises DataError if the folder does not hold what `save` wrote."""
        try:
            description = json.loads((folder / "description.json").read_text())
            library = None if description["kind"] == "bytes" else _library(folder / "tokenizer.json")
            loaded = cls(description["kind"], library, description["separator"], description["vocabulary"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: not a saved tokenizer ({error})") from None
        if loaded.identity != description.get("identity"):
            raise DataError(f"{folder}: the tokenizer was altered after it was saved; make it again")
        return loaded


def _word_encoder(library: "tokenizers.Tokenizer", dtype: np.dtype) -> "WordEncoder":
    from reducible.data.words import WordEncoder

    return WordEncoder(library, dtype)


def byte_tokenizer() -> Tokenizer:
    """Ids 0-255 are the bytes, 256 the separator."""
    return Tokenizer("bytes", None, 256, 257)


def train_bpe(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE with `vocabulary` ids in all: 256 bytes, merges, and the separator last."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocabulary < 257:
        raise DataError(f"tokenizer.vocabulary: {vocabulary} is too small; 256 bytes and the separator are 257")
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer=trainer)
    found = library.get_vocab_size()
    return Tokenizer("bpe", library, found, found + 1)


def from_file(path: Path, separator: str | None = None) -> Tokenizer:
    """Loads a tokenizer.json. `separator` names its token for the end of a text; without it an id is added."""
    if not path.is_file():
        wrong = "is not a regular file" if path.exists() else "does not exist"
        raise DataError(f"data.tokenizer.path: {path} {wrong}; give the path of a tokenizer.json")
    library = _library(path)
    vocabulary = 1 + max(library.get_vocab(with_added_tokens=True).values())
    if separator is None:
        return Tokenizer("file", library, vocabulary, vocabulary + 1)
    token = library.token_to_id(separator)
    if token is None:
        raise DataError(f"tokenizer.separator: {path} has no token {separator!r}")
    return Tokenizer("file", library, token, vocabulary)


def from_library(library: "tokenizers.Tokenizer", separator: int) -> Tokenizer:
    """A tokenizer of the library with its own id for the end of a text."""
    vocabulary = 1 + max(library.get_vocab(with_added_tokens=True).values())
    return Tokenizer("file", _plain(library), separator, vocabulary)


def _library(path: Path) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer as Library

    try:
        library = Library.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{path}: not a tokenizer.json ({str(error).splitlines()[0]})") from None
    return _plain(library)


def _plain(library: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    # Truncation and padding belong to a use of the tokenizer, not to a corpus. Text that spells a special token is
    # encoded as text.
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    return library


# What a tokenizer must give back unchanged: capitals, accents composed and not, spaces, ligatures, rare symbols.
_PROBE = "Hello  WÖRLD,\n\tdef f(x): #  e\u0301 ﬁ ½ ☃ 🙂 \u4e2d\u6587\n"


def _token_bytes(library: "tokenizers.Tokenizer", vocabulary: int) -> np.ndarray:
    byte_level = '"ByteLevel"' in json.dumps(json.loads(library.to_str())["decoder"])
    added = library.get_added_tokens_decoder()
    counts = np.zeros(vocabulary, np.int64)
    for piece, token in library.get_vocab(with_added_tokens=True).items():
        if token not in added:
            counts[token] = _piece_bytes(piece, byte_level)
        elif not added[token].special:
            counts[token] = len(piece.encode())  # stands for itself
    return counts


def _piece_bytes(piece: str, byte_level: bool) -> int:
    if byte_level:
        return len(piece)  # its alphabet gives every byte one character
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return 1
    return len(piece.replace("▁", " ").encode())
