"""Docstrings as sentences and as pairs with names; on the real library no sentence and no name straddles the splits."""

from pathlib import Path

import pytest

from reducible.data import python_files
from reducible.data.docstrings import corpus, described, first_sentence, subtokens
from reducible.data.errors import DataError
from reducible.data.pair_files import LeftOut, PairSource, listing, read_pairs
from reducible.data.pairs import Division, HeldOut
from reducible.data.sources import Source, read
from reducible.data.sources import listing as text_listing

MODULE = '''"""Tools for reading headers. More about them."""

class Reader:
    """Reads one header
    of two lines.

    And a second paragraph.
    """

    def __init__(self):
        """Open the file."""

    def readHTTPHeader_v2(self):
        """Return the header, e.g. Host, of a request.  It may be empty."""
        if True:
            def _inner():
                "Do the inner work"
        x = """Not a docstring. At all."""

try:
    pass
except OSError:
    async def fetch_all():
        """Fetch everything!  Then stop."""
else:
    def silent(): pass

def f(): """Signature(x, y) -> z"""
def g(): """One"""
def h(): """:param x: something"""
def same(): """Return the header, e.g. Host, of a request."""
'''


def test_first_sentences_with_their_names_in_the_order_of_the_file() -> None:
    assert list(described(MODULE.encode())) == [
        ("Tools for reading headers.", None),
        ("Reads one header of two lines.", None),
        ("Open the file.", None),  # __init__ is no name that one could guess
        ("Return the header, e.g. Host, of a request.", "read http header v 2"),
        ("Do the inner work", "inner"),
        ("Fetch everything!", "fetch all"),
        ("Return the header, e.g. Host, of a request.", "same"),
    ]
    for broken in (b'def f(:\n """x y"""', b"\x00'''a b'''", b"x = 1"):
        assert list(described(broken)) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("get_default", "get default"),
        ("setUpClass", "set up class"),
        ("HTTPServer2", "http server 2"),
        ("_XMLParser__feed", "xml parser feed"),
        ("__len__", None),
        ("_", None),
        ("_1", None),
    ],
)
def test_names_in_subtokens(name: str, expected: str | None) -> None:
    assert subtokens(name) == expected


def test_sentences_end_where_one_ends() -> None:
    assert first_sentence("See RFC 822, i.e. The old one. Next.") == "See RFC 822, i.e. The old one."
    assert first_sentence("Version 3.5 of it") == "Version 3.5 of it"
    assert first_sentence("word " * 41) is None
    assert first_sentence("\ud800 half a pair") is None
    assert first_sentence(">>> call(1)") is None


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "one.py").write_text(MODULE)
    (folder / "two.py").write_text('def inner():\n    """Do the inner work."""\n')
    monkeypatch.setattr(
        python_files, "paths", lambda name: [(path.name, path) for path in sorted(folder.iterdir(), reverse=True)]
    )
    return folder


def test_a_corpus_has_everything_once_and_is_made_once(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = corpus("docstrings", "txt", cache)
    assert found[0] == "docstrings.txt"
    assert found[1].read_text().splitlines() == [
        "Do the inner work",
        "Do the inner work.",
        "Fetch everything!",
        "Open the file.",
        "Reads one header of two lines.",
        "Return the header, e.g. Host, of a request.",
        "Tools for reading headers.",
    ]
    pairs = corpus("docstrings", "tsv", cache)
    assert pairs[1].read_text().splitlines() == [
        "Do the inner work\tinner",  # with and without its full stop it is one
        "Fetch everything!\tfetch all",
        "Return the header, e.g. Host, of a request\tread http header v 2",
        "Return the header, e.g. Host, of a request\tsame",
    ]
    before = pairs[1].stat().st_mtime_ns
    assert corpus("docstrings", "tsv", cache) == pairs and pairs[1].stat().st_mtime_ns == before
    (package / "two.py").write_text("x = 1\n")
    assert corpus("docstrings", "tsv", cache) != pairs


def test_as_text_a_sentence_is_a_document(package: Path, tmp_path: Path) -> None:
    source = Source("builtin:docstrings")
    documents = list(read(text_listing(source, tmp_path / "cache"), source, []))
    assert len(documents) == 7 and documents[2].text == "Fetch everything!"


def test_text_corpora_are_no_pairs(tmp_path: Path) -> None:
    for location in ("builtin:stdlib", "builtin:nothing", "builtin:nile"):
        with pytest.raises(DataError, match="holds no pairs; builtin:docstrings and"):
            listing(PairSource((location,)), tmp_path)


@pytest.mark.slow
def test_nothing_leaks_in_the_standard_library(tmp_path: Path) -> None:
    source = PairSource(("builtin:docstrings",))
    pairs = list(read_pairs(listing(source, tmp_path), source, LeftOut()))
    assert len(pairs) > 4000 and len(set(pair[1:] for pair in pairs)) == len(pairs)
    division = Division("both", 0.1)
    held_out = HeldOut.of(pairs, division)
    train = [pair for pair in pairs if division.split_of(pair) == "train" and pair not in held_out]
    validation = [pair for pair in pairs if division.split_of(pair) == "validation"]
    assert len(validation) > 250 and len(train) > 0.8 * len(pairs)
    for side in ("source", "target"):
        assert not {getattr(pair, side) for pair in train} & {getattr(pair, side) for pair in validation}
    # Why the names alone do not suffice: the same sentence describes functions of several names.
    by_name = [pair for pair in pairs if division.split_of(pair) == "train"]
    assert {pair.source for pair in by_name} & {pair.source for pair in validation}
