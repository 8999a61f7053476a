"""The tasks that turn a recipe's pairs into a dataset, and what models must know of it beforehand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reducible.data.generated_pairs import GeneratedPairs
from reducible.data.pair_files import PairSource, listing
from reducible.data.sources import InputFile, groups
from reducible.data.tokenizer import byte_tokenizer, from_file
from reducible.pipelines.recipe.pairs_section import Files, PairData, PairTokenizer
from reducible.pipelines.recipe.recipe import Recipe
from reducible.tasks.dataset import tokenise, tokenise_pairs
from reducible.tasks.dataset.tokenise import FileSpec, Reading, TokenizerSpec
from reducible.tasks.dataset.tokenise_pairs import (
    DivisionSpec,
    HeldOutPairsSpec,
    PairDatasetSpec,
    PairInputsSpec,
    PairNaming,
    PairReading,
    PairShardSpec,
    VocabularySpec,
    vocabulary_items,
)
from reducible.tasks.workflow.identity import fingerprint
from reducible.tasks.workflow.store import Store, sha256_of
from reducible.tasks.workflow.task import Task

BPE_VOCABULARY = 4096  # where a recipe says nothing
_COUNTED = 1  # version of how vocabularies are counted


@dataclass(frozen=True)
class _Input:
    """One source with its files."""

    source: PairSource
    files: list[InputFile]

    def spec(self, files: list[InputFile] | None = None) -> PairInputsSpec:
        source, generated = self.source, None
        if source.generated is not None:
            # How many there are is no part of it: a piece that is there stays as it is when more are asked for.
            generated = {key: value for key, value in vars(source.generated).items() if key != "examples"}
        return PairInputsSpec(
            files=tuple(
                FileSpec(name=file.name, size=file.size, sha256=file.sha256)
                for file in (self.files if files is None else files)
            ),
            parallel=source.parallel,
            columns=source.columns,
            lowercase=source.lowercase,
            on_error=source.on_error,
            generated=generated,
        )

    def reading(self, files: list[InputFile] | None = None) -> PairReading:
        return PairReading(
            paths={file.name: file.path for file in (self.files if files is None else files)},
            generated_examples=self.source.generated.examples if self.source.generated else None,
        )

    @property
    def shards(self) -> list[list[InputFile]]:
        return [self.files] if self.source.parallel else groups(self.files)


def pair_facts(data: PairData, store: Store) -> dict[str, Any]:
    """Both vocabularies, known before anything runs: BPE never finds more than was asked for, words and characters
    are counted (once: the number is remembered under the root)."""
    training = _training(data, store)
    target, source = (_vocabulary_size(data, side, training, store) for side in ("target", "source"))
    return {"source_vocabulary": source, "vocabulary": target, "shared": data.shared}


def pair_dataset_task(recipe: Recipe, store: Store, tokenizers: Mapping[str, Task] | None = None) -> Task:
    """Lists and hashes the inputs (hashes are remembered under the root) and returns the task that needs them all."""
    data = recipe.data
    assert isinstance(data, PairData)
    training = _training(data, store)
    by = _split_by(data)
    tokenizers = tokenizers or {
        "tokenizer": _tokenizer_task(data, "target", training),
        "source_tokenizer": _tokenizer_task(data, "source", training),
    }
    apart: dict[Literal["validation", "test"], _Input] = {}
    if data.validation is not None:
        apart["validation"] = _named(data.validation, data, store)
    if data.test is not None:
        apart["test"] = _named(data.test, data, store)
    held_out = {
        f"held-out-{split}": _hold_out(split, given, DivisionSpec(by=by, share=0.0, split=split))
        for split, given in apart.items()
    }
    division = _division(data)
    if data.validation is None and by == "both":
        held_out["held-out-share"] = _hold_out("validation", training, division)
    shards = _shard_tasks("", training, division, {**tokenizers, **held_out})
    for split, given in apart.items():
        shards += _shard_tasks(split, given, DivisionSpec(by=by, share=0.0, split=split), tokenizers)
    generated = training.source.generated
    return Task(
        name="dataset",
        version=tokenise_pairs.VERSION,
        run="reducible.tasks.dataset.tokenise_pairs:gather_pairs",
        spec=PairDatasetSpec(shared=data.shared, lowercase=data.lowercase),
        inputs={**tokenizers, **{f"shard-{index:06d}": shard for index, shard in enumerate(shards)}},
        label="dataset",
        execution=PairNaming(
            name=recipe.name,
            source=" ".join(data.source) if data.source else f"generated:{generated.kind if generated else ''}",
            apart={split: " ".join(given.source.locations) for split, given in apart.items()},
            generated=vars(generated) if generated else None,
        ),
    )


def _training(data: PairData, store: Store) -> _Input:
    if data.generated is not None:
        described = data.generated.model_dump()
        source = PairSource(generated=GeneratedPairs(**described))
        return _Input(source, listing(source))
    assert data.source is not None
    return _named(data.source, data, store)


def _named(files: Files, data: PairData, store: Store) -> _Input:
    source = PairSource(files, data.columns, data.lowercase, data.on_error)
    return _Input(source, listing(source, store.root / "hashes"))


def _split_by(data: PairData) -> Literal["source", "target", "both"]:
    if data.split_by is not None:
        return data.split_by
    # Hundreds of functions share a name, and some of them their docstring: either would give the answer away.
    return "both" if data.source is not None and data.source[0].startswith("builtin:docstrings") else "source"


def _division(data: PairData) -> DivisionSpec:
    """Of the training source: all of it trains where a source for validation is named."""
    if data.validation is not None:
        return DivisionSpec(by=_split_by(data), share=0.0, split="train")
    return DivisionSpec(by=_split_by(data), share=data.validation_share)


def _wanted(data: PairData, side: Literal["source", "target"]) -> PairTokenizer:
    return data.source_tokenizer if side == "source" and data.source_tokenizer is not None else data.tokenizer


def _vocabulary_spec(data: PairData, side: Literal["source", "target"], training: _Input) -> VocabularySpec:
    wanted = _wanted(data, side)
    assert wanted.kind != "bytes" and wanted.kind != "file"
    return VocabularySpec(
        kind=wanted.kind,
        side="both" if data.shared else side,
        vocabulary=wanted.vocabulary or (BPE_VOCABULARY if wanted.kind == "bpe" else None),
        sample=wanted.sample if wanted.kind == "bpe" else None,
        least_count=wanted.least_count,
        inputs=training.spec(),
        division=_division(data),
    )


def _vocabulary_size(data: PairData, side: Literal["source", "target"], training: _Input, store: Store) -> int:
    wanted = _wanted(data, side)
    if wanted.kind == "bytes":
        return byte_tokenizer().vocabulary
    if wanted.kind == "file":
        return from_file(Path(str(wanted.path)), wanted.separator).vocabulary
    if wanted.kind == "bpe":
        return wanted.vocabulary or BPE_VOCABULARY
    spec = _vocabulary_spec(data, side, training)
    remembered = store.root / "hashes" / "vocabularies.json"
    key = fingerprint([_COUNTED, spec.model_dump(mode="json")])
    sizes = _read(remembered)
    if key not in sizes:
        sizes[key] = 2 + len(vocabulary_items(spec, training.reading()))  # the unknown token and the separator
        remembered.parent.mkdir(parents=True, exist_ok=True)
        part = remembered.with_name(f".{remembered.name}.{key[:12]}")
        part.write_text(json.dumps(sizes))
        part.replace(remembered)
    return sizes[key]


def _read(path: Path) -> dict[str, int]:
    """Anything wrong with the memory only costs counting again."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): int(value) for key, value in content.items()} if isinstance(content, dict) else {}


def _tokenizer_task(data: PairData, side: Literal["source", "target"], training: _Input) -> Task:
    wanted = _wanted(data, side)
    if wanted.kind == "bytes":
        return Task(
            "tokenizer",
            tokenise.VERSION,
            "reducible.tasks.dataset.tokenise:make_tokenizer",
            TokenizerSpec(kind="bytes"),
            label="tokenizer",
        )
    if wanted.kind == "file":
        path = Path(str(wanted.path))
        from_file(path, wanted.separator)  # a wrong path or file is said now, before anything runs
        return Task(
            "tokenizer",
            tokenise.VERSION,
            "reducible.tasks.dataset.tokenise:make_tokenizer",
            TokenizerSpec(kind="file", sha256=sha256_of(path), separator=wanted.separator),
            label="tokenizer",
            execution=Reading(location=str(path), paths={}),
        )
    spec = _vocabulary_spec(data, side, training)
    size = f" {spec.vocabulary:,}" if spec.vocabulary else ""
    return Task(
        name="tokenizer",
        version=tokenise_pairs.VERSION,
        run="reducible.tasks.dataset.tokenise_pairs:make_pair_tokenizer",
        spec=spec,
        label=f"tokenizer of {'both sides' if data.shared else side + 's'} ({spec.kind}{size})",
        execution=training.reading(),
        weight=float(sum(file.size for file in training.files)),
    )


def _hold_out(split: str, given: _Input, division: DivisionSpec) -> Task:
    return Task(
        name="held-out",
        version=tokenise_pairs.VERSION,
        run="reducible.tasks.dataset.tokenise_pairs:hold_out_pairs",
        spec=HeldOutPairsSpec(inputs=given.spec(), division=division),
        label=f"held-out pairs ({split})",
        execution=given.reading(),
        weight=float(sum(file.size for file in given.files)),
    )


def _shard_tasks(split: str, given: _Input, division: DivisionSpec, inputs: Mapping[str, Task]) -> list[Task]:
    shards = given.shards
    return [
        Task(
            name="pairs",
            version=tokenise_pairs.VERSION,
            run="reducible.tasks.dataset.tokenise_pairs:tokenise_pairs",
            spec=PairShardSpec(inputs=given.spec(shard), division=division),
            inputs=inputs,
            label=f"pairs {split} {number}/{len(shards)}".replace("  ", " "),
            execution=given.reading(shard),
            weight=float(sum(file.size for file in shard)),
        )
        for number, shard in enumerate(shards, 1)
    ]
