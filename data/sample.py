"""A deterministic sample of the training documents, to train a tokenizer on."""

import hashlib
from collections.abc import Iterator, Sequence

from reducible.data.errors import DataError
from reducible.data.hashes import InputFile
from reducible.data.sources import Source, read
from reducible.data.split import content_key, is_validation

SAMPLE_BYTES = 16 * 2**20


def sample_files(files: Sequence[InputFile], size: int = SAMPLE_BYTES) -> list[InputFile]:
    """The files to read for a sample of about `size` bytes, in the order of their hashes, so that few are read.

    Only these belong to the identity of the tokenizer: a file added later that is not among them changes nothing.
    """
    chosen: list[InputFile] = []
    total = 0
    for file in sorted(files, key=_rank):
        if total >= size:
            break
        chosen.append(file)
        total += file.size
    return chosen


def sample_texts(
    files: Sequence[InputFile], source: Source, size: int = SAMPLE_BYTES, validation: float = 0.05
) -> Iterator[str]:
    """Texts of about `size` bytes from the given files, never from a validation document.

    If the files hold more, documents are kept by a hash of their content, so that the sample comes from all parts of
    a long file.
    """
    total = sum(file.size for file in files)
    keep = min(1.0, size / max(total, 1))
    taken = 0
    for document in read(files, source, []):
        data = document.text.encode()
        if is_validation(content_key(data), validation) or not data:
            continue
        if len(data) < size and content_key(b"sample\0" + data) >= keep * 2**64:
            continue
        text = document.text if len(data) <= size - taken else document.text[: size - taken]
        taken += len(text)
        yield text
        if taken >= size:
            return
    if not taken:
        raise DataError(
            "tokenizer: the sample holds no training document; cut the text into more documents "
            "(data.documents: paragraph) or give more text"
        )


def _rank(file: InputFile) -> bytes:
    return hashlib.sha256(f"sample\0{file.name}\0{file.sha256}".encode()).digest()
