"""Train or validation by the content of the document: it never moves, and two equal documents never part."""

import hashlib


def content_key(data: bytes) -> int:
    """64 bits that stand for a document's UTF-8 bytes."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8])


def is_validation(key: int, fraction: float) -> bool:
    """Whether the document belongs to validation, the given fraction of all documents on average."""
    return key < fraction * 2**64
