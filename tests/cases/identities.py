"""A spec or two of every task, and the defaults of every field, for the tables in identities.json.

python tests/cases/identities.py        write the tables anew, after a version was raised or a task was added
"""

import json
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from reducible.models.families.registry import FAMILIES
from reducible.tasks.dataset import make_series, tokenise, tokenise_pairs
from reducible.tasks.evaluate import evaluate_spec
from reducible.tasks.evaluate.evaluate_pairs import PairsSettings
from reducible.tasks.evaluate.evaluate_sentences import SentencesSettings
from reducible.tasks.evaluate.evaluate_series import SeriesSettings
from reducible.tasks.evaluate.evaluate_text import TextSettings
from reducible.tasks.fit import comparison, confirmation, fit_spec
from reducible.tasks.report import report_spec
from reducible.tasks.train import learning_rate_search, pretrained_base, quantised_base, train_spec
from reducible.tasks.workflow.identity import canonical
from reducible.tasks.workflow.pipeline_summary import SummarySpec
from reducible.tasks.workflow.record import flatten
from reducible.tasks.workflow.task import Task

TABLES = Path(__file__).with_name("identities.json")

FILE = tokenise.FileSpec(name="a.txt", size=3, sha256="ab" * 32)
INPUTS = tokenise.InputsSpec(files=(FILE,))
PAIRS = tokenise_pairs.PairInputsSpec(files=(FILE,))
DIVISION = tokenise_pairs.DivisionSpec(by="source", share=0.1)
ONE = ((1.0,),)
TRAIN: dict[str, Any] = {
    "model": {"vocabulary": 256, "width": 64, "depth": 2},
    "sequence": 128,
    "stop_step": 100,
    "batch": 1024,
    "micro_batch": 8,
}
SERIES: dict[str, Any] = {"generated": None, "validation_share": 0.2, "test_share": 0.0, "standardise": True}
FACTS = {
    "text": {"vocabulary": 256},
    "sentences": {"vocabulary": 256},
    "pairs": {"vocabulary": 90, "source_vocabulary": 80, "shared": False},
    "series": {"channels": 2},
}


def training(**changes: Any) -> train_spec.TrainSpec:
    return train_spec.TrainSpec.model_validate(TRAIN | changes)


def specs() -> Iterator[tuple[str, int, BaseModel]]:
    """(task, version, spec)"""
    yield "tokenizer", tokenise.VERSION, tokenise.TokenizerSpec(kind="bytes")
    yield (
        "tokenizer",
        tokenise.VERSION,
        tokenise.TokenizerSpec(kind="bpe", vocabulary=512, sample=1000, inputs=INPUTS, validation_share=0.1),
    )
    yield "tokens", tokenise.VERSION, tokenise.ShardSpec(inputs=INPUTS, validation_share=0.05)
    yield "held-out", tokenise.VERSION, tokenise.HeldOutSpec(inputs=INPUTS)
    yield "dataset", tokenise.VERSION, tokenise.DatasetSpec()
    yield (
        "tokenizer",
        tokenise_pairs.VERSION,
        tokenise_pairs.VocabularySpec(kind="words", side="source", vocabulary=9, inputs=PAIRS, division=DIVISION),
    )
    yield "held-out", tokenise_pairs.VERSION, tokenise_pairs.HeldOutPairsSpec(inputs=PAIRS, division=DIVISION)
    yield "pairs", tokenise_pairs.VERSION, tokenise_pairs.PairShardSpec(inputs=PAIRS, division=DIVISION)
    yield "dataset", tokenise_pairs.VERSION, tokenise_pairs.PairDatasetSpec(shared=True)
    table = make_series.TableSpec(files=(FILE,), columns=("x", "y"), time=None, series=None)
    yield (
        "dataset",
        make_series.VERSION,
        make_series.SeriesSpec(files=table, split="time", stride=None, **SERIES),
    )
    generated = make_series.GeneratedSpec(A=ONE, B=ONE, C=ONE, D=ONE, series=4, length=9, seed=1)
    yield (
        "dataset",
        make_series.VERSION,
        make_series.SeriesSpec(files=None, split="series", stride=2, **SERIES | {"generated": generated}),
    )
    for name, kind in FAMILIES.items():
        yield "train", train_spec.VERSION, training(family=name, model=settings(kind.config(**FACTS[kind.reads])))
    yield (
        "train",
        train_spec.VERSION,
        training(
            seed=3,
            mask_documents=True,
            optimizer={"learning_rate": 1e-3, "clip": None},
            schedule={"kind": "cosine", "warmup_steps": 5},
            validation={"every": 10},
            precision="bf16",
            spike_guard=6.0,
            method={"kind": "lora", "rank": 4},
        ),
    )
    yield "train", train_spec.VERSION, training(start_step=50, optimizer={"learning_rate": None})
    yield (
        "search",
        learning_rate_search.VERSION,
        learning_rate_search.SearchSpec(train=training(), samples=4, low=1e-3, high=1e-1),
    )
    yield "checkpoint", pretrained_base.VERSION, pretrained_base.PretrainedSpec(files=(FILE,), vocabulary=32)
    yield "quantised", quantised_base.VERSION, quantised_base.QuantiseSpec()
    for settings_of in (TextSettings, SentencesSettings, PairsSettings, SeriesSettings):
        yield "evaluate", evaluate_spec.VERSION, settings_of()
        yield "evaluate", evaluate_spec.VERSION, settings_of(split="test", units=None)
    cells = (fit_spec.Cell(input="a", label="a", budget=1e12, seed=0), fit_spec.Cell(input="b", label="b"))
    yield "fit", fit_spec.VERSION, fit_spec.FitSpec(cells=cells)
    lost = (fit_spec.Excluded(label="c", reason="diverged"),)
    yield "fit", fit_spec.VERSION, fit_spec.FitSpec(name="f", cells=cells, excluded=lost)
    yield "compare", comparison.VERSION, comparison.CompareSpec(name="c", families=("a", "b"))
    searched = (fit_spec.Cell(input="a", label="a", search="s"),)
    yield "fit", fit_spec.VERSION, fit_spec.FitSpec(cells=searched)
    yield "prediction", confirmation.VERSION, confirmation.ConfirmationSpec(name="n-1e15", law="n")
    yield "report", report_spec.VERSION, report_spec.ReportSpec(title="Notes")
    families = report_spec.FamiliesReportSpec(families=("a",), declared=("a", "b"))
    yield "report", report_spec.VERSION, families
    yield "summary", 1, SummarySpec(name="notes")


def identities() -> dict[str, str]:
    """By task, class and place among those of the same class; the families' by their name."""
    upstream = Task(name="dataset", version=1, run="", spec=tokenise.DatasetSpec())
    found: dict[str, str] = {}
    for name, version, spec in specs():
        task = Task(name=name, version=version, run="", spec=spec, inputs={"data": upstream})
        title = " ".join([name, type(spec).__name__, getattr(spec, "family", "")]).rstrip()
        place = sum(key.rsplit(" ", 1)[0] == title for key in found)
        found[f"{title} {place}"] = task.identity
    return found


def defaults() -> dict[str, dict[str, Any]]:
    """By task, version and class: the default of every field that has one, of nested models and families too."""
    found: dict[str, dict[str, Any]] = {}
    for name, version, spec in specs():
        found[f"{name} {version} {type(spec).__name__}"] = dict(defaults_of(type(spec)))
    for name, kind in FAMILIES.items():
        config = {f.name: canonical(f.default) for f in fields(kind.config) if f.default is not MISSING}
        found[f"train {train_spec.VERSION} {name}"] = config
    return found


def defaults_of(spec: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for name, field in spec.model_fields.items():
        if not field.is_required():
            default = canonical(field.get_default(call_default_factory=True))
            yield from flatten({name: default}).items()
        for model in models_in(field.annotation):
            yield from ((f"{name}.{model.__name__}.{key}", default) for key, default in defaults_of(model))


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def settings(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(config)}


if __name__ == "__main__":
    tables = {"identities": identities(), "defaults": defaults()}
    TABLES.write_text(json.dumps(tables, indent=1) + "\n")
