"""Pairs from files to batches: against naive readings of the same files, and mistakes named by file and line."""

import gzip
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reducible.data.errors import DataError
from reducible.data.generated_pairs import GeneratedPairs
from reducible.data.hashes import verify_splits
from reducible.data.packing import IGNORE
from reducible.data.pair_files import LeftOut, Pair, PairSource, listing, read_pairs
from reducible.data.pair_texts import training_texts
from reducible.data.pairs import Division, HeldOut, Pairs, statistics, write_pairs
from reducible.data.split import content_key
from reducible.data.tokenizer import Tokenizer, byte_tokenizer
from reducible.data.vocabulary import count_vocabulary, whole

BYTES = byte_tokenizer()
EXPECTED = [("ein haus", "a house"), ("zwei", "two"), ("ä ☃", "s|n\\ow")]


def pairs_in(*locations: Path, left_out: LeftOut | None = None, **settings: object) -> list[tuple[str, str]]:
    source = PairSource(tuple(map(str, locations)), **settings)  # type: ignore[arg-type]
    return [pair[1:] for pair in read_pairs(listing(source), source, left_out or LeftOut())]


def lines(rows: Sequence[Sequence[str]], separator: str = "\t") -> bytes:
    return "".join(separator.join(row) + "\n" for row in rows).encode()


def test_every_format_gives_the_same_pairs(tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    sides = [lines([[pair[side]] for pair in EXPECTED]) for side in (0, 1)]
    records = [{"de": de, "en": en, "more": 1} for de, en in EXPECTED]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "pairs.parquet")
    jsonl = "".join(json.dumps(record) + "\n" for record in records).encode()
    named = {"columns": ("de", "en")}
    assert pairs_in(file("pairs.tsv", lines(EXPECTED))) == EXPECTED
    assert pairs_in(file("pairs.txt.gz", gzip.compress(lines(EXPECTED)))) == EXPECTED
    assert pairs_in(file("mark.tsv", b"\xef\xbb\xbf" + lines(EXPECTED).replace(b"\n", b"\r\n") + b"\n")) == EXPECTED
    assert pairs_in(file("head.tsv", lines([("en", "x", "de")] + [(b, "-", a) for a, b in EXPECTED])), **named) == (
        EXPECTED
    )
    assert pairs_in(file("wide.tsv", lines([(b, "-", a) for a, b in EXPECTED])), columns=(3, 1)) == EXPECTED
    assert pairs_in(file("pairs.jsonl", jsonl), **named) == EXPECTED
    assert pairs_in(tmp_path / "pairs.parquet", **named) == EXPECTED
    assert pairs_in(file("a.de", sides[0]), file("a.en", sides[1])) == EXPECTED
    assert pairs_in(file("b.de", sides[0]), file("b.en.gz", gzip.compress(sides[1]))) == EXPECTED
    assert pairs_in(tmp_path / "?airs.tsv") == EXPECTED
    assert pairs_in(file("case.tsv", b" EIN \xc3\x84  \t A\n"), lowercase=True) == [("ein ä", "a")]


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("p.tsv", b"a\tb\nc\n", {}, r"p\.tsv: line 2: 1 column instead of 2 \(source, tab, target\); repair it, or"),
        ("p.tsv", b"a\tb\tc\n", {}, r"p\.tsv: line 1: 3 columns instead of 2 .*data\.columns chooses two"),
        ("p.tsv", b"a\tb\nc\t \n", {}, r"p\.tsv: line 2: the target is empty"),
        ("p.tsv", b"\tb\n", {}, r"p\.tsv: line 1: the source is empty"),
        ("p.tsv", b"a\tb\n\xff\tc\n", {}, r"p\.tsv: line 2: not UTF-8 \(byte 0xff at offset 0\)"),
        ("p.tsv", b"en\tde\na\tb\n", {"columns": ("en", "fr")}, r"line 1 names no column 'fr' \(it has en, de\)"),
        ("p.tsv", b"a\tb\n", {"columns": (1, 3)}, r"line 1: 2 columns instead of at least 3"),
        ("p.tsv", b"en\tde\na\tb\tc\n", {"columns": ("en", "de")}, r"line 2: 3 columns instead of 2"),
        ("p.jsonl", b'{"source": "a", "target": "b"}\n{"source": "a"}\n', {}, r"line 2: no column 'target' \(it has s"),
        ("p.jsonl", b'{"source": "a", "target": 1}\n', {}, r"line 1: column 'target' holds int, not text"),
        ("p.jsonl", b"[1]\n", {}, r"line 1: a list, not an object with columns of text"),
        ("p.jsonl", b"{}\n", {"columns": (1, 2)}, r"data\.columns: .*give two names instead of numbers"),
        ("p.tsv", b"en\ten\na\tb\n", {"columns": ("en", "de")}, r"line 1 names more than one column 'en'"),
        ("p.tsv", "a\tb\n".encode("utf-16-le"), {}, r"line 1: holds a NUL byte, which no text does; is it UTF-16\?"),
        ("p.csv", b"a,b\n", {}, r"p\.csv: CSV is not read; write the pairs as TSV"),
        ("p.tsv.gz", gzip.compress(b"a\tb\n" * 99, mtime=0)[:-9], {}, r"p\.tsv\.gz: cannot be read"),
    ],
)
def test_what_is_no_pair_is_named_by_file_and_line(
    tmp_path: Path, name: str, content: bytes, settings: dict[str, object], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        pairs_in(tmp_path / name, **settings)


def test_skipping_leaves_out_lines_and_damaged_files_and_names_them(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"a\tb\nalone\n\xff\tc\n\n\td\ne\tf\n")
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(b"x\ty\n" * 99)[:-9])
    left_out = LeftOut()
    assert pairs_in(tmp_path, on_error="skip", left_out=left_out) == [("a", "b"), ("e", "f")]
    assert [(item.file, item.where) for item in left_out.skipped] == [
        ("a.tsv", "line 2: "),
        ("a.tsv", "line 3: "),
        ("a.tsv", "line 5: "),
        ("b.tsv.gz", ""),
    ]


def test_parallel_files_belong_line_to_line(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"a\n\n \nb\xc2\x85c\n")  # U+0085 ends no line
    (tmp_path / "two").write_bytes(b"A\n\n\nB")
    left_out = LeftOut()
    assert pairs_in(tmp_path / "one", tmp_path / "two", left_out=left_out) == [("a", "A"), ("b\x85c", "B")]
    assert left_out.empty == 2
    (tmp_path / "two").write_bytes(b"A\nB\nC\nD\nE\n")
    for on_error in ("refuse", "skip"):  # nothing tells which lines belong together
        with pytest.raises(DataError, match=r"one has 4 lines, .*two 5: in parallel files line n"):
            (tmp_path / "one").write_bytes(b"a\nb\nc\nd\n")
            pairs_in(tmp_path / "one", tmp_path / "two", on_error=on_error)
    (tmp_path / "two").write_bytes(b"A\n\nC\nD\n")
    with pytest.raises(DataError, match=r"one: line 2: the target is empty"):
        pairs_in(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two").write_bytes(b"A\nB\n\xff\nD\n")
    with pytest.raises(DataError, match=r"two: line 3: not UTF-8"):
        pairs_in(tmp_path / "one", tmp_path / "two")
    with pytest.raises(DataError, match="does not exist"):
        pairs_in(tmp_path / "one", tmp_path / "three")
    with pytest.raises(DataError, match="3 files; give one file of pairs, or two parallel files"):
        pairs_in(tmp_path / "one", tmp_path / "two", tmp_path / "one")


def test_the_same_file_name_on_both_sides(tmp_path: Path) -> None:
    for side in ("en", "de"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "train").write_text(f"{side}\n")
    source = PairSource((str(tmp_path / "en/train"), str(tmp_path / "de/train")))
    assert [file.name for file in listing(source)] == ["source/train", "target/train"]
    assert pairs_in(tmp_path / "en/train", tmp_path / "de/train") == [("en", "de")]


# -- splits -----------------------------------------------------------------------------------------------------------

texts = st.text(st.sampled_from("ab c"), min_size=1, max_size=4).map(str.strip).filter(bool)
some_pairs = st.lists(st.tuples(texts, texts), max_size=60).map(lambda all: [Pair("", *texts) for texts in all])


@given(pairs=some_pairs, by=st.sampled_from(["source", "target", "both"]), share=st.sampled_from([0.1, 0.5]))
def test_no_text_that_the_division_looks_at_straddles_the_splits(pairs: list[Pair], by: str, share: float) -> None:
    division = Division(by, share)  # type: ignore[arg-type]
    held_out = HeldOut.of(pairs, division)
    train = [pair for pair in pairs if division.split_of(pair) == "train" and pair not in held_out]
    validation = [pair for pair in pairs if division.split_of(pair) == "validation"]
    if by != "target":
        assert not {pair.source for pair in train} & {pair.source for pair in validation}
    if by != "source":
        assert not {pair.target for pair in train} & {pair.target for pair in validation}
    for pair in pairs:
        assert division.split_of(pair) == division.split_of(Pair("elsewhere", pair.source, pair.target))
        key = content_key((pair.source if by == "source" else pair.target).encode())
        assert (division.split_of(pair) == "validation") == (key < share * 2**64)


def test_what_tests_or_validates_elsewhere_is_not_trained_on(tmp_path: Path) -> None:
    apart = [Pair("", "s1", "t1"), Pair("", "s2", "t2")]
    kept: dict[str, int] = {}
    for by in ("source", "target", "both"):
        division = Division(by, 0.0, "train")  # type: ignore[arg-type]
        folder = tmp_path / by
        folder.mkdir()
        HeldOut.of(apart, Division(by, 0.0, "test")).save(folder)  # type: ignore[arg-type]
        training = [Pair("", "s1", "other"), Pair("", "other", "t2"), Pair("", "new", "new")]
        written = write_pairs(training, BYTES, BYTES, folder / "out", division, HeldOut.load(folder))
        kept[by] = written["splits"]["train"]["pairs"]
        assert written["held_out"] == 3 - kept[by]
    assert kept == {"source": 2, "target": 2, "both": 1}


# -- batches ----------------------------------------------------------------------------------------------------------


def written_in(folder: Path, groups: list[list[Pair]]) -> list[Path]:
    folders = [folder / str(number) for number in range(len(groups))]
    for place, pairs in zip(folders, groups, strict=True):
        write_pairs(pairs, BYTES, BYTES, place, Division(split="train"))
    return folders


@given(groups=st.lists(some_pairs, min_size=1, max_size=3), sequence=st.integers(1, 6))
def test_batches_are_the_texts(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[Pair]], sequence: int
) -> None:
    folders = written_in(tmp_path_factory.mktemp("pairs"), groups)
    examples = Pairs(folders, "train", sequence, BYTES, BYTES)
    pairs = [pair for group in groups for pair in group]
    assert len(examples) == len(pairs)
    assert examples.texts(range(len(pairs))) == [(pair.source, pair.target) for pair in pairs]
    assert examples.cut == sum(max(len(pair.source), len(pair.target)) + 1 > sequence for pair in pairs)
    if not pairs:
        return
    sources = [[*pair.source.encode()[: sequence - 1], 256] for pair in pairs]
    targets = [[*pair.target.encode(), 256][:sequence] for pair in pairs]
    assert examples.source_lengths.tolist() == [len(source) for source in sources]
    assert examples.lengths.tolist() == [len(target) for target in targets]
    assert examples.sizes.tolist() == [max(len(s), len(t)) for s, t in zip(sources, targets, strict=True)]
    batch = examples.batch(np.arange(len(pairs)))
    assert batch["source"].shape == (len(pairs), max(map(len, sources)))
    assert batch["inputs"].shape == batch["targets"].shape == (len(pairs), max(map(len, targets)))
    assert batch["source_lengths"].tolist() == examples.source_lengths.tolist()
    for row in range(len(pairs)):
        assert batch["source"][row].tolist() == sources[row] + [256] * (batch["source"].shape[1] - len(sources[row]))
        rest = batch["targets"].shape[1] - len(targets[row])
        assert batch["targets"][row].tolist() == targets[row] + [IGNORE] * rest
        assert batch["inputs"][row].tolist() == ([256] + targets[row])[: len(targets[row])] + [256] * rest
    assert examples.units(batch) == sum(map(len, targets))


def test_each_side_has_its_own_tokenizer_and_is_refused_with_another(tmp_path: Path) -> None:
    words = whole(["b", "a"], "words")
    counts = write_pairs([Pair("", "ab", "a new b")], BYTES, words, tmp_path, Division(split="test"))["splits"]["test"]
    assert (counts["source_tokens"], counts["target_tokens"], counts["target_unknown"]) == (2, 3, 1)
    batch = Pairs([tmp_path], "test", 9, BYTES, words).batch(np.array([0]))
    assert batch["source"].tolist() == [[*b"ab", 256]]
    assert batch["targets"].tolist() == [[2, 0, 1, words.separator]]
    assert all(array.dtype == np.int64 for array in batch.values())
    with pytest.raises(DataError, match="made with source_tokenizer"):
        Pairs([tmp_path], "test", 9, words, words)
    with pytest.raises(DataError, match="made with tokenizer"):
        Pairs([tmp_path], "test", 9, BYTES, BYTES)


def test_the_fingerprint_is_of_the_content_only(tmp_path: Path) -> None:
    def fingerprint(folder: str, pairs: list[Pair], sequence: int = 8) -> str:
        return Pairs(written_in(tmp_path / folder, [pairs]), "train", sequence, BYTES, BYTES).fingerprint

    first = [Pair("", "a", "b"), Pair("", "c", "d")]
    others = [
        fingerprint("longer", first, 9),
        fingerprint("moved", [Pair("", "ac", ""), Pair("", "", "bd")]),  # the same tokens in all
        fingerprint("turned", first[::-1]),
    ]
    assert fingerprint("same", [Pair("elsewhere", "a", "b"), Pair("", "c", "d")]) == fingerprint("first", first)
    assert len({fingerprint("first", first), *others}) == 4


def test_torn_files_are_seen(tmp_path: Path) -> None:
    folder = written_in(tmp_path, [[Pair("", "a", "b")] * 50])[0]
    verify_splits(folder, statistics(folder)["splits"])
    content = (folder / "train.arrow").read_bytes()
    (folder / "train.arrow").write_bytes(content[:-20])
    with pytest.raises(DataError, match="torn or was altered"):
        verify_splits(folder, statistics(folder)["splits"])
    with pytest.raises(DataError, match="not a whole file of pairs"):
        Pairs([folder], "train", 8, BYTES, BYTES)
    with pytest.raises(DataError, match="holds no pairs"):
        Pairs([tmp_path / "nowhere"], "train", 8, BYTES, BYTES)


# -- tokenizers of words and characters -------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=12), min_size=1, max_size=8))
def test_words_and_characters_come_back(tmp_path_factory: pytest.TempPathFactory, found: list[str]) -> None:
    for unit in ("words", "characters"):
        if not any(map(str.split, found)):
            continue
        tokenizer = whole(count_vocabulary(found, unit), unit)  # type: ignore[arg-type]
        ids = tokenizer.encode_batch(found)
        if unit == "characters":
            assert [tokenizer.decode(row) for row in ids] == found
            assert [len(row) for row in ids] == [len(text) for text in found]
            assert tokenizer.vocabulary == len(set("".join(found))) + 2
        frequencies = np.bincount(np.concatenate(ids), minlength=tokenizer.vocabulary)
        assert frequencies[0] == 0  # nothing is unknown
        assert np.all(np.diff(frequencies[1:]) <= 0)  # the most frequent first
        folder = tmp_path_factory.mktemp("tokenizer")
        tokenizer.save(folder)
        again = Tokenizer.load(folder)
        assert [row.tolist() for row in again.encode_batch(found)] == [row.tolist() for row in ids]


def test_vocabularies_are_counted_and_limited() -> None:
    found = ["b a b", "c b a <unk>"]
    assert count_vocabulary(found, "words") == ["b", "a", "c"]
    assert count_vocabulary(found, "words", most=1) == ["b"]
    assert count_vocabulary(found, "words", least_count=2) == ["b", "a"]
    tokenizer = whole(["b", "a"], "words")
    assert [row.tolist() for row in tokenizer.encode_batch(["a  new b", "<unk>"])] == [[2, 0, 1], [0]]
    assert tokenizer.decode([2, 0, 1, tokenizer.separator]) == "a <unk> b"
    assert not tokenizer.token_bytes().any()  # what loses text has no nats per byte
    with pytest.raises(DataError, match="no words occur 9 times or more"):
        count_vocabulary(found, "words", least_count=9)


def test_tokenizers_see_training_texts_only(tmp_path: Path) -> None:
    rows = [(f"source{number}", f"target{number}") for number in range(300)]
    (tmp_path / "pairs.tsv").write_bytes(lines(rows))
    source = PairSource((str(tmp_path / "pairs.tsv"),))
    files = listing(source)
    division = Division("source", 0.3)
    train = [row for row in rows if division.split_of(Pair("", *row)) == "train"]
    assert 150 < len(train) < 260
    assert list(training_texts(files, source, "source", division)) == [row[0] for row in train]
    assert list(training_texts(files, source, "target", division)) == [row[1] for row in train]
    assert list(training_texts(files, source, "both", division)) == [text for row in train for text in row]
    sample = list(training_texts(files, source, "both", division, sample=1000))
    assert 500 < sum(map(len, sample)) < 1100 and set(sample) < {text for row in train for text in row}
    assert max(int(text[6:]) for text in sample) > 200  # from all parts of the file
    with pytest.raises(DataError, match="leaves no pair to train a tokenizer on"):
        list(training_texts(files, source, "source", Division(split="test")))


def test_tokenizers_see_no_text_of_a_pair_that_is_left_out(tmp_path: Path) -> None:
    """By both: a pair that shares its source with one that validates does not train, and makes no vocabulary."""
    rows = [(f"source{number // 2}", f"target{number}") for number in range(200)]
    (tmp_path / "pairs.tsv").write_bytes(lines(rows))
    source = PairSource((str(tmp_path / "pairs.tsv"),))
    division = Division("both", 0.2)
    split = {row: division.split_of(Pair("", *row)) for row in rows}
    validating = {row[0] for row in rows if split[row] != "train"}
    train = [row for row in rows if split[row] == "train" and row[0] not in validating]
    assert 50 < len(train) < sum(name == "train" for name in split.values())
    assert list(training_texts(listing(source), source, "both", division)) == [text for row in train for text in row]


# -- generated pairs --------------------------------------------------------------------------------------------------


def generated(**settings: object) -> list[tuple[list[str], list[str]]]:
    described = GeneratedPairs(**settings)  # type: ignore[arg-type]
    return [
        (source.split(), target.split())
        for name, _, _ in described.files()
        for _, source, target in described.pairs_of(name)
    ]


@pytest.mark.parametrize("kind", ["copy", "reverse", "sort"])
def test_generated_targets_follow_from_their_sources(kind: str) -> None:
    pairs = generated(kind=kind, examples=500, symbols=5, length=7, shortest=2)
    order = GeneratedPairs("copy", 1, symbols=5)
    letters = "etaoi"
    assert {len(source) for source, _ in pairs} == set(range(2, 8))
    assert {symbol for source, _ in pairs for symbol in source} == set(letters)
    for source, target in pairs:
        by_hand = {"copy": source, "reverse": source[::-1], "sort": sorted(source, key=letters.index)}[kind]
        assert target == by_hand
        assert GeneratedPairs(kind, 1, symbols=5).nats_of(" ".join(source), " ".join(target)) == 0  # type: ignore[arg-type]
    assert order.entropy_per_symbol == 0


def test_the_noise_has_the_entropy_that_is_claimed() -> None:
    """Against the empirical distribution of (symbol meant, symbol written) over 60,000 symbols."""
    settings = {"kind": "reverse", "symbols": 4, "length": 20, "noise": 0.3}
    pairs = generated(examples=3000, **settings)
    joint = Counter((a, b) for source, target in pairs for a, b in zip(source[::-1], target, strict=True))
    total = sum(joint.values())
    meant = Counter(source for (source, _), count in joint.items() for _ in range(count))
    empirical = -sum(count / total * math.log(count / meant[a]) for (a, _), count in joint.items())
    described = GeneratedPairs(examples=3000, **settings)  # type: ignore[arg-type]
    assert empirical == pytest.approx(described.entropy_per_symbol, abs=0.01)
    own = sum(described.nats_of(" ".join(source), " ".join(target)) for source, target in pairs) / total
    assert own == pytest.approx(described.entropy_per_symbol, abs=0.02)


def test_more_examples_change_none_and_the_seed_changes_all() -> None:
    first = generated(kind="copy", examples=10)
    assert generated(kind="copy", examples=10_050)[:10] == first
    assert len(generated(kind="copy", examples=10_050)) == 10_050
    assert not set(map(str, generated(kind="copy", examples=10, seed=1))) & set(map(str, first))
    short = [name_size[2] for name_size in GeneratedPairs("copy", 10_000).files()]
    assert [file[2] for file in GeneratedPairs("copy", 20_000).files()][:1] == short


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "swap"}, "generated.kind: 'swap' is not one of copy, reverse, sort"),
        ({"symbols": 1}, "generated.symbols: 1 is not within 2 to 64"),
        ({"length": 3, "shortest": 4}, "generated.shortest: 4 is not within 1 to 3"),
        ({"noise": 1.5}, "generated.noise: 1.5 is not within 0 to 1"),
    ],
)
def test_impossible_generated_pairs_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        GeneratedPairs(**{"kind": "copy", "examples": 1, **settings})  # type: ignore[arg-type]
