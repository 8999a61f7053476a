"""Sentences, and pairs of a sentence and a function's name, from the docstrings of Python files on the machine."""

import ast
import hashlib
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from reducible.data import python_files
from reducible.data.errors import DataError
from reducible.data.hashes import HashCache

CORPORA = {"docstrings": "stdlib", "docstrings-packages": "packages"}
"""Corpora of docstrings, and the Python files that each is made from (data/python_files.py)."""

_VERSION = 1  # raised when something else is taken from a file
_WORDS = (2, 40)  # fewest and most words of a sentence that is kept
_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.)\s+(?=[A-Z`'\"(*])")
_SIGNATURE = re.compile(r"[\w.]+\(")  # what numpy and others write instead of a first sentence
_SUBTOKEN = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")


class Described(NamedTuple):
    sentence: str
    name: str | None
    """A function's name as lower-case sub-tokens with spaces between; None for classes, modules, special methods."""


def corpus(name: str, suffix: Literal["txt", "tsv"], cache: Path | None) -> tuple[str, Path]:
    """(name, file) of one of CORPORA.

    suffix "txt": each different sentence once, one a line. "tsv": each different pair of sentence and name once. Both
    are sorted, so that they depend on nothing but what is in the Python files; they are made once and kept in
    `cache`.
    """
    folder = cache or Path(tempfile.gettempdir()) / f"reducible-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    files = python_files.paths(CORPORA[name])
    place = folder / f"{name}-{_key(files, folder)}.{suffix}"
    if not place.is_file():
        if name == "docstrings-packages":
            print("reducible: reading the docstrings of 200 MB of Python, once; this takes minutes", file=sys.stderr)
        _write(place, [path for _, path in files])
    return f"{name}.{suffix}", place


def described(source: bytes) -> Iterator[Described]:
    """The first sentence of every docstring in a Python file, in its order; none if the file does not parse."""
    if b'"""' not in source and b"'''" not in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for the authors of these files
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in _definitions(tree):
        text = ast.get_docstring(node)
        sentence = first_sentence(text) if text else None
        if sentence is None:
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Described(sentence, subtokens(node.name))
        else:
            yield Described(sentence, None)


def first_sentence(docstring: str) -> str | None:
    """The first sentence of the first paragraph, with single spaces between its words; None if it is not a sentence.

    Signatures, examples, markup, fewer than 2 or more than 40 words, and text that is not Unicode are not sentences.
    """
    paragraph = " ".join(docstring.split("\n\n", 1)[0].split())
    sentence = _END.split(paragraph, maxsplit=1)[0]
    if not _WORDS[0] <= len(sentence.split()) <= _WORDS[1] or not any(map(str.isalpha, sentence)):
        return None
    if sentence.startswith((":", "..", ">>>", "@", "#")) or _SIGNATURE.match(sentence) or ">>>" in sentence:
        return None
    try:
        sentence.encode()
    except UnicodeEncodeError:
        return None
    return sentence


def subtokens(name: str) -> str | None:
    """readHTTPHeader_v2 -> read http header v 2; None for __special__ names and those without a plain letter."""
    if name.startswith("__") and name.endswith("__"):
        return None
    found = [piece.lower() for piece in _SUBTOKEN.findall(name)]
    return " ".join(found) if any(map(str.isalpha, found)) else None


def _definitions(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """What can have a docstring, in the order of the file. Expressions cannot, so they are not walked."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        inner: list[ast.AST] = []
        for field in ("body", "handlers", "orelse", "finalbody", "cases"):
            part = getattr(node, field, None)
            if isinstance(part, list):
                inner += part
        waiting += reversed(inner)


def _key(files: Iterable[tuple[str, Path]], folder: Path) -> str:
    """A hash of the Python files' names and content: other files make another corpus."""
    hashes = HashCache(folder)
    try:
        found = sorted((name, hashes.sha256(path)[1]) for name, path in files)
    except OSError as error:
        raise DataError(f"a Python file cannot be read ({error}); install the packages again") from None
    hashes.save()
    return hashlib.sha256(json.dumps([_VERSION, found]).encode()).hexdigest()[:16]


def _write(place: Path, paths: Iterable[Path]) -> None:
    """Writes both forms at once, because parsing takes most of the time."""
    sentences, pairs = set(), set()
    for path in paths:
        for item in described(path.read_bytes()):
            sentences.add(item.sentence)
            if item.name is not None:
                pairs.add(f"{item.sentence.removesuffix('.')}\t{item.name}")
    for suffix, lines in ((".txt", sentences), (".tsv", pairs)):
        part = place.with_suffix(f"{suffix}.{os.getpid()}")
        part.write_bytes("".join(f"{line}\n" for line in sorted(lines)).encode())
        os.replace(part, place.with_suffix(suffix))
