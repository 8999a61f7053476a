"""A recipe of pairs becomes a dataset: facts known beforehand come true, splits do not leak, mistakes are one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from in_process import make

from reducible.data.errors import DataError
from reducible.pipelines.recipe.load import load_recipe
from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.dataset.pairs_kind import PairDataset
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import in_order


def made(folder: Path, data: dict[str, Any], name: str = "toy") -> tuple[PairDataset, dict[str, Any]]:
    """The dataset of the recipe, its tasks run in this process, and what was known before they ran."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"data": {"kind": "pairs", **data}}))
    recipe, store = load_recipe(path), Store(folder / "root")
    facts, dataset = recipe.data.facts(store), recipe.data.dataset_task(recipe.name, store)
    make([dataset], store)
    return open_dataset(store.artifact("dataset", dataset.identity)), facts


def identities(folder: Path, data: dict[str, Any]) -> dict[str, set[str]]:
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({"data": {"kind": "pairs", **data}}))
    tasks: dict[str, set[str]] = {}
    for task in in_order([load_recipe(path).data.dataset_task("toy", Store(folder / "root"))]):
        tasks.setdefault(task.name, set()).add(task.identity)
    return tasks


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [(f"the {n % 7} cats number {n}", f"{n} Katzen {n % 5}") for n in range(400)]
    (tmp_path / "pairs.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    for side, suffix in enumerate(("en", "de")):
        (tmp_path / f"train.{suffix}").write_text("".join(row[side] + "\n" for row in rows))
        (tmp_path / f"test.{suffix}").write_text("".join(row[side] + "\n" for row in rows[:10]))
    return tmp_path


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer": {"kind": "words"}},
        {"tokenizer": {"kind": "words", "vocabulary": 20}, "source_tokenizer": {"kind": "characters"}},
        {"tokenizer": {"kind": "words", "least_count": 3}, "shared": True},
        {"tokenizer": {"kind": "bytes"}, "lowercase": True},
        {"tokenizer": {"kind": "bpe", "vocabulary": 280}, "shared": True},
        {"tokenizer": {"kind": "bpe", "vocabulary": 300}, "source_tokenizer": {"kind": "bytes"}},
    ],
)
def test_vocabularies_are_known_before_anything_runs(corpus: Path, settings: dict[str, Any]) -> None:
    dataset, facts = made(corpus, {"source": "pairs.tsv", "validation_share": 0.2, "sequence": 64, **settings})
    found = {key: dataset.content[key] for key in ("source_vocabulary", "vocabulary", "shared")}
    assert found == facts
    assert facts["shared"] == settings.get("shared", False)
    assert (dataset.content["source_tokenizer"] == dataset.content["tokenizer"]) == (
        facts["shared"] or settings["tokenizer"] == {"kind": "bytes"}
    )
    for split in ("train", "validation"):
        examples = dataset.examples("pairs", split, 64)
        batch = examples.batch(np.arange(len(examples)))
        assert batch["source"].max() < facts["source_vocabulary"] and batch["targets"].max() < facts["vocabulary"]
        written = dataset.content["splits"][split]
        assert len(examples) == written["pairs"] > 40
        assert examples.units(batch) == written["tokens"] == written["target_tokens"] + written["pairs"]


def test_the_dataset_is_every_pair_once(corpus: Path) -> None:
    dataset, _ = made(corpus, {"source": "pairs.tsv", "tokenizer": {"kind": "words"}})
    texts = [
        text
        for split in ("train", "validation")
        for examples in [dataset.examples("pairs", split, 64)]
        for text in examples.texts(range(len(examples)))
    ]
    expected = [tuple(line.split("\t")) for line in (corpus / "pairs.tsv").read_text().splitlines()]
    assert sorted(texts) == sorted(expected)
    with pytest.raises(UserError, match=r"toy: has no test split; name a source for it \(data\.test\)"):
        dataset.examples("pairs", "test", 64)
    with pytest.raises(UserError, match="is pairs; a family that reads text needs data.kind: text"):
        dataset.examples("text", "train", 64)
    with pytest.raises(UserError, match="is pairs; a family that reads series needs data.kind: series"):
        dataset.examples("series", "train", 64)
    with pytest.raises(UserError, match="is pairs; a family that reads sentences needs data.kind: text"):
        dataset.examples("sentences", "train", 64)


def test_what_tests_is_left_out_of_training_and_said(corpus: Path) -> None:
    dataset, _ = made(
        corpus,
        {
            "source": ["train.en", "train.de"],
            "test": ["test.en", "test.de"],
            "validation_share": 0.2,
            "tokenizer": {"kind": "words"},
        },
    )
    examples = {split: dataset.examples("pairs", split, 64) for split in ("train", "validation", "test")}
    sources = {split: {source for source, _ in one.texts(range(len(one)))} for split, one in examples.items()}
    assert len(sources["test"]) == 10
    assert not sources["train"] & sources["test"] and not sources["train"] & sources["validation"]
    assert dataset.content["held_out"] == 10 - len(sources["test"] & sources["validation"])
    note = (dataset.folder / "record" / "note.md").read_text()
    assert f"{dataset.content['held_out']} pairs are left out of training" in note
    assert "| the 0 cats number 0 | 0 Katzen 0 |" in note
    described = json.loads((dataset.folder / "record" / "describe.json").read_text())
    assert described["parameters"]["test.pairs"] == 10


def test_the_truth_about_generated_pairs_is_written_down(tmp_path: Path) -> None:
    settings = {"kind": "reverse", "examples": 3000, "symbols": 8, "length": 6, "noise": 0.1}
    dataset, _ = made(tmp_path, {"generated": settings, "tokenizer": {"kind": "words"}})
    truth = dataset.content["truth"]["validation"]
    # Six noisy symbols and an end that is certain: H(0.1) + 0.1 log 7 each.
    assert truth["expected"] == pytest.approx(6 / 7 * 0.519674, abs=1e-5)
    # The same from the texts, by counting what differs.
    examples = dataset.examples("pairs", "validation", 64)
    texts = examples.texts(range(len(examples)))
    wrong = sum(a != b for source, target in texts for a, b in zip(source.split()[::-1], target.split(), strict=True))
    nats = wrong * np.log(7 / 0.1) + (6 * len(texts) - wrong) * -np.log(0.9)
    assert truth["loss"] == pytest.approx(nats / (7 * len(texts)), rel=1e-12)
    exact, _ = made(tmp_path, {"generated": {**settings, "noise": 0}, "tokenizer": {"kind": "words"}}, "exact")
    assert exact.content["truth"]["train"] == {"expected": 0.0, "loss": 0.0}


def test_what_changes_makes_again_what_depends_on_it_and_nothing_else(corpus: Path) -> None:
    data: dict[str, Any] = {"source": "pairs.tsv", "tokenizer": {"kind": "words"}}
    before = identities(corpus, data)
    assert identities(corpus, {**data, "sequence": 16}) == before  # cutting is not tokenising
    assert identities(corpus, {**data, "lowercase": True})["tokenizer"].isdisjoint(before["tokenizer"])
    shared = identities(corpus, {**data, "shared": True})
    assert len(shared["tokenizer"]) == 1 and shared["dataset"] != before["dataset"]
    shards = [
        identities(corpus, {"generated": {"kind": "copy", "examples": examples}, "tokenizer": {"kind": "bytes"}})[
            "pairs"
        ]
        for examples in (150_000, 160_000)
    ]
    assert len(shards[0] - shards[1]) <= 1 < len(shards[0])  # more examples: all but the last shard stay


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "none.tsv"}, r"none\.tsv does not exist"),
        ({}, r"data: give one of source \(pairs\.tsv, .*\) and generated"),
        ({"source": ["a", "b", "c"]}, r"data\.source: .*a list of two parallel files"),
        ({"source": "pairs.tsv", "columns": [0, 1]}, r"data\.columns: .*two names, or two numbers from 1"),
        ({"source": "pairs.tsv", "columns": ["de"]}, r"data\.columns: .*two names, or two numbers from 1"),
        ({"source": "pairs.tsv", "tokenizer": {"kind": "file"}}, r"data\.tokenizer: path names a tokenizer\.json"),
        ({"source": "pairs.tsv", "tokenizer": {"vocabulary": 100}}, r"data\.tokenizer: vocabulary: 256 bytes and"),
        (
            {"source": "pairs.tsv", "shared": True, "source_tokenizer": {"kind": "bytes"}},
            r"data: shared means one tokenizer for both sides",
        ),
        ({"source": "pairs.tsv", "lowercas": True}, r"data\.lowercas: unknown key; did you mean lowercase\?"),
        ({"source": "pairs.tsv", "split_by": "name"}, r"data\.split_by: 'name' is not allowed"),
        ({"generated": {"kind": "swap"}}, r"data\.generated\.kind: 'swap' is not allowed"),
        ({"generated": {"kind": "copy", "symbols": 99}}, r"generated\.symbols: 99 is not within 2 to 64"),
        ({"source": "builtin:stdlib"}, r"builtin:stdlib holds no pairs; builtin:docstrings and"),
        ({"source": "one.tsv"}, r"one\.tsv leaves the validation split empty \(1 pairs for train, 0 for validation\)"),
        ({"source": "empty.tsv"}, r"empty\.tsv leaves no pair to train a tokenizer on; give more"),
        ({"source": 3}, r"data\.source: 3 is not allowed; it must be a path of pairs, or a list of two parallel"),
        ({"source": "pairs.tsv", "columns": [1, 1]}, r"data\.columns: .*two different columns"),
        ({"source": "bad.tsv", "on_error": "skip"}, r"\(2 skipped; the first: bad\.tsv: line 1: 1 column instead of 2"),
        ({"source": "pairs.tsv", "test": "empty.tsv"}, r"data\.test: .*empty\.tsv holds no pairs"),
        (
            {"source": "pairs.tsv", "validation": "pairs.tsv"},
            r"leaves the train split empty \(.*; 400 are left out because validation or test has one of their texts\)",
        ),
    ],
)
def test_a_mistake_is_one_line(corpus: Path, settings: dict[str, Any], message: str) -> None:
    (corpus / "one.tsv").write_text("a\tb\n")
    (corpus / "empty.tsv").write_text("\n")
    (corpus / "bad.tsv").write_text("a\nb\n")
    with pytest.raises((UserError, DataError), match=message) as caught:
        made(corpus, {"tokenizer": {"kind": "words"}, **settings})
    assert "\n" not in str(caught.value)
