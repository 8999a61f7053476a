"""Inputs: every format gives the same documents, names do not depend on the place, and nothing is dropped unsaid."""

import gzip
import json
import os
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from reducible.data.errors import DataError
from reducible.data.hashes import HashCache, InputFile
from reducible.data.on_error import Skipped
from reducible.data.sources import Source, groups, listing, read, read_documents

TEXTS = ["first document\nof two lines\n", "naïve ☃ 🙂", "third\r\n\r\nwith another line end", "x"]


def texts_of(source: Source, skipped: list[Skipped] | None = None) -> list[str]:
    return [document.text for document in read(listing(source), source, [] if skipped is None else skipped)]


def write_jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": number, "body": text}) + "\n" for number, text in enumerate(texts)).encode()


def write_parquet(path: Path, texts: list[str]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(texts)), "body": texts}), path, row_group_size=2)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson", "a.parquet", "A.JSONL.GZ"])
def test_columns_of_text_in_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = write_jsonl(TEXTS)
    if name.endswith("parquet"):
        write_parquet(path, TEXTS)
    elif name.lower().endswith(".gz"):
        path.write_bytes(gzip.compress(data[:50]) + gzip.compress(data[50:]))  # two members are one file
    elif name.endswith(".zst"):
        path.write_bytes(zstandard.compress(data[:50]) + zstandard.compress(data[50:]))
    else:
        path.write_bytes(data)
    assert texts_of(Source(str(path), column="body")) == TEXTS
    for column in (None, "text"):  # the default is text
        with pytest.raises(DataError, match=r"no column 'text'.*id, body"):
            texts_of(Source(str(path), column))


@pytest.mark.parametrize("documents", ["file", "line", "paragraph"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_plain_text_cut_into_documents(tmp_path: Path, documents: str, suffix: str) -> None:
    text = "one\ntwo ☃\n\n\n  \nthree\r\nfour\r\n\r\nfive\x0b\u2028still five"
    data = text.encode()
    packed = {"": data, ".gz": gzip.compress(data), ".zst": zstandard.compress(data)}[suffix]
    (tmp_path / f"a.txt{suffix}").write_bytes(packed)
    expected = {
        "file": [text],
        "line": [line.rstrip("\r") for line in text.split("\n") if line.strip()],
        "paragraph": ["one\ntwo ☃", "three\nfour", "five\x0b\u2028still five"],
    }[documents]
    assert texts_of(Source(str(tmp_path), documents=documents)) == expected  # type: ignore[arg-type]


@given(text=st.text(alphabet="ab \n\t\r", max_size=60))
def test_paragraphs_are_what_blank_lines_part(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("paragraphs") / "a.txt"
    path.write_bytes(text.encode())
    lines = "\n".join(line.rstrip("\r") for line in text.split("\n"))
    expected = [piece.strip("\n") for piece in re.split(r"(?:^|\n)[ \t\r]*(?=\n|$)", lines) if piece.strip(" \t\r\n")]
    assert texts_of(Source(str(path), documents="paragraph")) == expected


def test_names_are_relative_and_sorted_wherever_the_source_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "there/deeper"):
        for name in ("b.md", "sub/a.md", "sub/c.txt", ".hidden.md", ".git/x.md"):
            path = tmp_path / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    here, there = tmp_path / "here", tmp_path / "there/deeper"
    assert [file.name for file in listing(Source(str(here)))] == ["b.md", "sub/a.md", "sub/c.txt"]
    assert listing(Source(str(here))) == listing(Source(str(there)))  # equality leaves the path out
    assert [file.name for file in listing(Source(f"{here}/**/*.md"))] == ["b.md", "sub/a.md"]
    assert [file.name for file in listing(Source(f"{here}/sub/c.txt"))] == ["c.txt"]
    monkeypatch.chdir(here)
    assert listing(Source("**/*.md")) == listing(Source(f"{there}/**/*.md"))
    assert [file.name for file in listing(Source("*.md"))] == ["b.md"]


def test_links_and_odd_names(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.txt").write_text("a")
    (folder / "sub" / "loop").symlink_to(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.txt").write_text("b")
    (folder / "linked").symlink_to(tmp_path / "other")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("c")
    files = listing(Source(str(folder)))
    assert [file.name for file in files] == ["caf\\xe9.txt", "linked/b.txt", "sub/a.txt"]
    assert texts_of(Source(str(folder))) == ["c", "b", "a"]
    assert len(groups(files)) >= 1


def test_what_does_not_exist_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; give a file"):
        listing(Source(str(tmp_path / "nothing")))
    with pytest.raises(DataError, match="holds no files"):
        listing(Source(str(tmp_path)))
    with pytest.raises(DataError, match="holds no files"):
        listing(Source(str(tmp_path / "*.txt")))
    with pytest.raises(DataError, match="builtin:nothing holds no text; builtin:stdlib, builtin:packages, .* do$"):
        listing(Source("builtin:nothing"))
    with pytest.raises(DataError, match="'word' is not one of file, line, paragraph"):
        Source("x", documents="word")  # type: ignore[arg-type]


BAD = {
    "latin.txt": b"caf\xe9",
    "torn.txt.gz": gzip.compress(b"text " * 100)[:-5],
    "flipped.txt.gz": gzip.compress(b"text " * 100)[:-8] + b"\0\0\0\0" + gzip.compress(b"text " * 100)[-4:],
    "torn.txt.zst": zstandard.compress(os.urandom(500))[:-5],
    "not.txt.zst": b"plain text",
    "not.txt.gz": b"plain text",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_or_skipped_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD[name])
    (tmp_path / "z_good.txt").write_text("good")
    with pytest.raises(DataError, match=f"{re.escape(name)}: .*on_error: skip"):
        texts_of(Source(str(tmp_path)))
    skipped: list[Skipped] = []
    assert texts_of(Source(str(tmp_path), on_error="skip"), skipped) == ["good"]
    assert [item.file for item in skipped] == [name]


def test_a_file_that_cannot_be_opened_is_refused_or_skipped_by_name(tmp_path: Path) -> None:
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "z_good.txt").write_text("good")
    with pytest.raises(DataError, match=r"broken\.txt: no such file.*on_error: skip"):
        listing(Source(str(tmp_path)))
    skipped: list[Skipped] = []
    assert texts_of(Source(str(tmp_path), on_error="skip"), skipped) == ["good"]
    assert [item.file for item in skipped] == ["broken.txt", "pipe.txt"]


def test_a_bad_record_is_skipped_alone(tmp_path: Path) -> None:
    rows = [
        b'{"body": "one"}',
        b"not json",
        b'{"body": null}',
        b'{"other": "x"}',
        b'["body"]',
        b'{"body": "half \\ud800"}',
        b'{"body": "caf\xe9"}',
        b'{"half \\udc00": "x"}',
        b"",
        b'{"body": "two"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(rows))
    skipped: list[Skipped] = []
    assert texts_of(Source(str(path), column="body", on_error="skip"), skipped) == ["one", "two"]
    assert [item.where for item in skipped] == [f"line {number}: " for number in (2, 3, 4, 5, 6, 7, 8)]
    assert all(item.reason.encode() for item in skipped)  # what is printed must be Unicode
    with pytest.raises(DataError, match=r"a\.jsonl: line 2: not JSON"):
        texts_of(Source(str(path), column="body"))

    for documents, bad in (("line", "line 2: "), ("paragraph", "line 1: ")):
        path = tmp_path / "b.txt"
        path.write_bytes(b"good\ncaf\xe9\n\nfine")
        skipped = []
        texts = texts_of(Source(str(path), documents=documents, on_error="skip"), skipped)  # type: ignore[arg-type]
        assert texts == (["good", "fine"] if documents == "line" else ["fine"])
        assert [item.where for item in skipped] == [bad]


def test_bad_values_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    raw = pyarrow.array([b"one", b"caf\xe9", None, b"two"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 4, raw.buffers(), null_count=1)
    pyarrow.parquet.write_table(pyarrow.table({"body": text, "number": [1, 2, 3, 4]}), path)
    skipped: list[Skipped] = []
    assert texts_of(Source(str(path), column="body", on_error="skip"), skipped) == ["one", "two"]
    assert [(item.where, item.reason) for item in skipped] == [
        ("row 2: ", "not UTF-8"),
        ("row 3: ", "column 'body' holds NoneType, not text"),
    ]
    with pytest.raises(DataError, match="row 1: column 'number' holds int, not text"):
        texts_of(Source(str(path), column="number"))


def test_a_column_of_plain_text_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"a\.txt: has no column 'body'"):
        texts_of(Source(str(tmp_path), column="body"))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz", "a.parquet"])
def test_torn_anywhere_is_never_half_used(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    texts = [f"line {number} {os.urandom(6).hex()}" for number in range(60)]
    if name.endswith("parquet"):
        write_parquet(path, texts)
    else:
        data = write_jsonl(texts) if "jsonl" in name else "\n".join(texts).encode()
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else zstandard.compress(data))
    whole = path.read_bytes()
    column = None if "txt" in name else "body"
    for length in range(1, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        skipped: list[Skipped] = []
        assert texts_of(Source(str(path), column, "line", on_error="skip"), skipped) == []
        assert [item.file for item in skipped] == [name]
        with pytest.raises(DataError, match=re.escape(name)):
            texts_of(Source(str(path), column, "line"))


NAMES = ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"]


@given(
    name=st.sampled_from(NAMES),
    documents=st.sampled_from(["file", "line", "paragraph"]),
    place=st.floats(0, 1),
    noise=st.binary(min_size=1, max_size=8),
    insert=st.booleans(),
    data=st.one_of(st.none(), st.binary(max_size=60)),
)
def test_no_bytes_whatever_give_a_traceback(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    documents: str,
    place: float,
    noise: bytes,
    insert: bool,
    data: bytes | None,
) -> None:
    """Sound files with a few bytes altered, and files of noise: skipped by name, or refused with a DataError."""
    path = tmp_path_factory.mktemp("noise") / name
    if data is not None:
        path.write_bytes(data)
    else:
        if name.endswith("parquet"):
            write_parquet(path, TEXTS)
        else:
            plain = write_jsonl(TEXTS) if "jsonl" in name else "\n".join(TEXTS).encode()
            packed = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rsplit(".")[-1], bytes)(plain)
            path.write_bytes(packed)
        sound = path.read_bytes()
        at = int(place * len(sound))
        path.write_bytes(sound[:at] + noise + sound[at if insert else at + len(noise) :])
    column = None if "txt" in name else "body"
    skipped: list[Skipped] = []
    kept = texts_of(Source(str(path), column, documents, on_error="skip"), skipped)  # type: ignore[arg-type]
    assert all(item.file == name and item.reason for item in skipped)
    for text in kept:
        text.encode()
    try:
        assert texts_of(Source(str(path), column, documents)) == kept  # type: ignore[arg-type]
        assert not skipped
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        assert skipped


def test_a_file_that_changes_after_the_listing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    for on_error in ("refuse", "skip"):
        source = Source(str(path), on_error=on_error)  # type: ignore[arg-type]
        (file,) = listing(source)
        path.write_text(f"after {on_error}")
        with pytest.raises(DataError, match="changed since it was listed"):
            list(read_documents(file, source))


def test_hashes_are_remembered_and_never_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = tmp_path / "folder", tmp_path / "cache"
    folder.mkdir()
    for name in ("old.txt", "young.txt"):
        (folder / name).write_text(name)
    os.utime(folder / "old.txt", ns=(10**18, 10**18))
    source = Source(str(folder))
    first = listing(source, cache)

    hashed: list[str] = []
    import hashlib

    digest = hashlib.file_digest

    def counted(stream, name):  # type: ignore[no-untyped-def]
        hashed.append(Path(stream.name).name)
        return digest(stream, name)

    monkeypatch.setattr("reducible.data.hashes.hashlib.file_digest", counted)
    assert listing(source, cache) == first
    assert hashed == ["young.txt"]  # within the clock's tick it could have changed again unseen
    (folder / "old.txt").write_text("NEW.txt")
    os.utime(folder / "old.txt", ns=(10**18, 10**18 + 1))
    assert [file.sha256 for file in listing(source, cache)][0] != first[0].sha256
    (cache / "hashes.json").write_text("{torn")
    assert len(listing(source, cache)) == 2
    assert HashCache(None).sha256(folder / "young.txt")[1] == first[1].sha256


def file_of(number: int, size: int) -> InputFile:
    return InputFile(f"{number:05d}.txt", "", size, f"{number:064x}")


@given(
    sizes=st.lists(st.integers(0, 60_000), min_size=1, max_size=130), place=st.floats(0, 1), size=st.integers(0, 10**6)
)
def test_a_file_more_changes_one_shard(sizes: list[int], place: float, size: int) -> None:
    files = [file_of(2 * number, size) for number, size in enumerate(sizes)]
    at = int(place * len(files))
    added = file_of(2 * at + 1, size)
    before, after = groups(files), groups(files[:at] + [added] + files[at:])
    assert [file for group in after for file in group] == files[:at] + [added] + files[at:]
    new = [group for group in after if group not in before]
    gone = [group for group in before if group not in after]
    assert len(gone) <= 1  # the shard that takes it up, whole or cut in two by it
    assert [file for group in new for file in group if file != added] == [file for group in gone for file in group]


def test_shards_are_bounded_and_many_enough() -> None:
    many = groups([file_of(number, 16_000) for number in range(730)])
    assert 8 <= len(many) <= 40
    assert max(sum(file.size for file in group) for group in many) <= 8 * 2**20
    tiny = groups([file_of(number, 100) for number in range(1000)])
    assert len(tiny) >= 4
    large = groups([file_of(number, 20 * 2**20) for number in range(10)])
    assert [len(group) for group in large] == [1] * 10
    middle = groups([file_of(number, 300_000) for number in range(3000)])
    assert max(sum(file.size for file in group) for group in middle) <= 8 * 2**20


def test_the_standard_library() -> None:
    source = Source("builtin:stdlib")
    files = listing(source)
    names = {file.name for file in files}
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= names
    assert not [name for name in names if "test" in name.split("/") or "site-packages" in name]
    assert 600 < len(files) < 900 and 8e6 < sum(file.size for file in files) < 16e6
    assert len(groups(files)) >= 8
    documents = sum(1 for _ in read(files, source, []))
    assert documents == len(files)


def test_the_packages() -> None:
    from reducible.data import python_files

    found = dict(python_files.paths("packages"))
    assert {"torch/nn/functional.py", "pandas/core/frame.py", "sympy/core/expr.py"} <= set(found)
    assert all(path.suffix == ".py" and not Path(name).is_absolute() for name, path in found.items())
    assert 150e6 < sum(path.stat().st_size for path in found.values()) < 260e6
