"""Data of kind pairs: the recipe's section, and the tasks that turn it into a dataset."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from reducible.data import schemes
from reducible.data.generated_pairs import GeneratedPairs
from reducible.data.hashes import InputFile
from reducible.data.known_entropy import KnownEntropy
from reducible.data.on_error import OnError
from reducible.data.pair_files import PairSource, listing
from reducible.data.pairs import SplitBy
from reducible.data.sources import groups
from reducible.models.config import LARGEST
from reducible.pipelines.dataset.data_section import DataSection
from reducible.pipelines.dataset.tokenizer_section import BPE_VOCABULARY, TokenizerSection
from reducible.pipelines.recipe.fields import Location, Number, Section, location
from reducible.tasks.count import Count, Seed
from reducible.tasks.dataset import tokenise_pairs
from reducible.tasks.dataset.input_files import by_content, paths_of, weight_of
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
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.identity import fingerprint
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task

SIDES: tuple[Literal["target"], Literal["source"]] = ("target", "source")
_COUNTED = 1  # version of how vocabularies are counted


def _files(value: Any) -> Any:
    """One file is a list of one."""
    files = (location(value),) if isinstance(value, str) else value
    if (
        not isinstance(files, list | tuple)
        or len(files) not in (1, 2)
        or not all(isinstance(file, str) for file in files)
    ):
        raise ValueError("a path of pairs, or a list of two parallel files, such as [train.en, train.de]")
    return tuple(files)


Files = Annotated[tuple[Location, ...], BeforeValidator(_files)]
"""A file, folder or glob of pairs, or two parallel files."""


def _two_columns(value: Any) -> Any:
    if value is None:
        return None
    kinds = {type(item) for item in value} if isinstance(value, list | tuple) else set()
    if kinds not in ({int}, {str}) or len(value) != 2 or kinds == {int} and min(value) < 1:
        raise ValueError("two names, or two numbers from 1, such as [1, 2]: the source's column and the target's")
    if value[0] == value[1]:
        raise ValueError("two different columns: the source's and the target's")
    return tuple(value)


class PairTokenizer(TokenizerSection):
    """bpe: byte-level, trained on the training pairs; bytes; words: between white space; characters; file."""

    kind: Literal["bpe", "bytes", "words", "characters", "file"] = "bpe"
    vocabulary: Count | None = Field(
        default=None,
        le=LARGEST,
        description="bpe: ids asked for, default 4096; words, characters: at most so many, default all",
    )
    least_count: int = Field(default=1, ge=1, description="words, characters: what is seen less often is unknown")

    @model_validator(mode="after")
    def _bpe_holds_all_bytes(self) -> "PairTokenizer":
        if self.kind == "bpe" and self.vocabulary is not None and self.vocabulary < 257:
            raise ValueError("vocabulary: 256 bytes and the separator are 257; give at least that for kind: bpe")
        return self


class GeneratedPairsSection(Section):
    """Pairs whose conditional entropy is known exactly (data/generated_pairs.py)."""

    kind: Literal["copy", "reverse", "sort"]
    examples: Count = 10_000
    symbols: int = Field(default=16, ge=2)
    length: Count = 12
    shortest: Count | None = Field(default=None, description="symbols of the shortest source; default length")
    noise: Annotated[Number, Field(ge=0, le=1)] = 0.0
    seed: Seed = 0


class PairData(DataSection):
    """Pairs of texts, for models that read a source and write a target."""

    paths = ("source", "validation", "test", "tokenizer.path", "source_tokenizer.path")
    kept = ("tokenizer", "source_tokenizer", "shared")

    kind: Literal["pairs"]
    source: Files | None = Field(
        default=None, description="TSV, JSONL, Parquet, two parallel files, or builtin:docstrings"
    )
    generated: GeneratedPairsSection | None = None
    validation: Files | None = Field(default=None, description="a separate source; otherwise a share of the pairs")
    test: Files | None = None
    validation_share: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    split_by: SplitBy | None = Field(
        default=None, description="which texts never straddle splits; default source, for docstrings both"
    )
    columns: Annotated[Any, BeforeValidator(_two_columns)] = Field(
        default=None, description="the source's and the target's: two names, or two numbers from 1"
    )
    lowercase: bool = False
    on_error: OnError = "refuse"
    tokenizer: PairTokenizer = PairTokenizer()
    source_tokenizer: PairTokenizer | None = Field(
        default=None, description="default: as tokenizer, but made from sources"
    )
    shared: bool = Field(default=False, description="one tokenizer, made from both sides")
    sequence: Count = Field(default=64, description="longest source and longest target, their ends included")

    @model_validator(mode="after")
    def _consistent(self) -> "PairData":
        if (self.source is None) == (self.generated is None):
            raise ValueError(
                "give one of source (pairs.tsv, pairs.jsonl, [train.en, train.de], builtin:docstrings) and generated"
            )
        if self.generated is not None and (self.validation or self.test or self.columns):
            raise ValueError("generated pairs are not read from files: leave out validation, test and columns")
        if self.shared and self.source_tokenizer is not None:
            raise ValueError("shared means one tokenizer for both sides; leave out source_tokenizer or shared")
        return self

    @property
    def may_test(self) -> bool:
        return self.test is not None

    def facts(self, store: Store) -> dict[str, Any]:
        """Both vocabularies, known before anything runs: BPE never finds more than was asked for, words and characters
        are counted (once: the number is remembered under the root)."""
        training = _training(self, store)
        target, source = (_vocabulary_size(self, side, training, store) for side in SIDES)
        return {"source_vocabulary": source, "vocabulary": target, "shared": self.shared}

    def known_entropy(self, content: Mapping[str, Any] | None) -> KnownEntropy | None:
        """Per symbol of the targets before the dataset is made, per target token of the validation pairs after."""
        if self.generated is None:
            return None
        rate = GeneratedPairs(**self.generated.model_dump()).entropy_per_symbol
        return KnownEntropy(rate, best_loss=content["truth"]["validation"]["expected"] if content else None)

    def as_trained(self, base: str, config: Any, content: Mapping[str, Any], store: Store) -> Self:
        super().as_trained(base, config, content, store)
        lowercase = bool(content.get("lowercase"))
        if "lowercase" in self.model_fields_set and self.lowercase != lowercase:
            raise UserError(f"data.lowercase: {base} was trained with {str(lowercase).lower()}; leave it out")
        return self.model_copy(update={"shared": config.shared, "lowercase": lowercase})

    def dataset_task(self, name: str, store: Store, tokenizers: Mapping[str, Task] | None = None) -> Task:
        training = _training(self, store)
        by = _split_by(self)
        tokenizers = tokenizers or {
            "tokenizer": _tokenizer_task(self, "target", training),
            "source_tokenizer": _tokenizer_task(self, "source", training),
        }
        apart: dict[Literal["validation", "test"], _Input] = {}
        if self.validation is not None:
            apart["validation"] = _named(self.validation, self, store, "data.validation")
        if self.test is not None:
            apart["test"] = _named(self.test, self, store, "data.test")
        held_out = {
            f"held-out-{split}": _hold_out(split, given, DivisionSpec(by=by, share=0.0, split=split))
            for split, given in apart.items()
        }
        division = _division(self)
        if self.validation is None and by == "both":
            held_out["held-out-share"] = _hold_out("validation", training, division)
        shards = _shard_tasks("", training, division, {**tokenizers, **held_out})
        for split, given in apart.items():
            shards += _shard_tasks(split, given, DivisionSpec(by=by, share=0.0, split=split), tokenizers)
        generated = training.source.generated
        return Task(
            name="dataset",
            version=tokenise_pairs.VERSION,
            run="reducible.tasks.dataset.tokenise_pairs:gather_pairs",
            spec=PairDatasetSpec(shared=self.shared, lowercase=self.lowercase),
            inputs={**tokenizers, **{f"shard-{index:06d}": shard for index, shard in enumerate(shards)}},
            label="dataset",
            execution=PairNaming(
                name=name,
                source=" ".join(
                    map(schemes.shown, self.source or (f"generated:{generated.kind if generated else ''}",))
                ),
                apart={split: " ".join(given.source.locations) for split, given in apart.items()},
                generated=vars(generated) if generated else None,
            ),
        )


@dataclass(frozen=True)
class _Input:
    """One source with its files."""

    source: PairSource
    files: list[InputFile]

    def spec(self, files: list[InputFile] | None = None) -> PairInputsSpec:
        source, generated = self.source, None
        if source.generated is not None:
            # Without the number of examples: asking for more leaves the pieces that exist as they are.
            generated = {key: value for key, value in vars(source.generated).items() if key != "examples"}
        return PairInputsSpec(
            files=by_content(self.files if files is None else files),
            parallel=source.parallel,
            columns=source.columns,
            lowercase=source.lowercase,
            on_error=source.on_error,
            generated=generated,
        )

    def reading(self, files: list[InputFile] | None = None) -> PairReading:
        return PairReading(
            paths=paths_of(self.files if files is None else files),
            generated_examples=self.source.generated.examples if self.source.generated else None,
        )

    @property
    def shards(self) -> list[list[InputFile]]:
        return [self.files] if self.source.parallel else groups(self.files)


def _training(data: PairData, store: Store) -> _Input:
    if data.generated is not None:
        described = data.generated.model_dump()
        source = PairSource(generated=GeneratedPairs(**described))
        return _Input(source, listing(source))
    assert data.source is not None
    return _named(data.source, data, store, "data.source")


def _named(files: Files, data: PairData, store: Store, field: str) -> _Input:
    source = PairSource(files, data.columns, data.lowercase, data.on_error, field=field)
    return _Input(source, listing(source, store.root / "hashes"))


def _split_by(data: PairData) -> SplitBy:
    if data.split_by is not None:
        return data.split_by
    decided = {} if data.source is None else schemes.settings(data.source[0], "pairs")
    by: SplitBy = decided.get("split_by", "source")
    return by


def _division(data: PairData) -> DivisionSpec:
    """The division of the training source: all of it trains if a source for validation is named."""
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
    if (known := wanted.known_vocabulary()) is not None:
        return known
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
    """The remembered sizes. A damaged file costs nothing but counting again."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): int(value) for key, value in content.items()} if isinstance(content, dict) else {}


def _tokenizer_task(data: PairData, side: Literal["source", "target"], training: _Input) -> Task:
    wanted = _wanted(data, side)
    if (ready := wanted.ready_made()) is not None:
        return ready
    spec = _vocabulary_spec(data, side, training)
    size = f" {spec.vocabulary:,}" if spec.vocabulary else ""
    return Task(
        name="tokenizer",
        version=tokenise_pairs.VERSION,
        run="reducible.tasks.dataset.tokenise_pairs:make_pair_tokenizer",
        spec=spec,
        label=f"tokenizer of {'both sides' if data.shared else side + 's'} ({spec.kind}{size})",
        execution=training.reading(),
        weight=weight_of(training.files),
    )


def _hold_out(split: str, given: _Input, division: DivisionSpec) -> Task:
    return Task(
        name="held-out",
        version=tokenise_pairs.VERSION,
        run="reducible.tasks.dataset.tokenise_pairs:hold_out_pairs",
        spec=HeldOutPairsSpec(inputs=given.spec(), division=division),
        label=f"held-out pairs ({split})",
        execution=given.reading(),
        weight=weight_of(given.files),
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
            weight=weight_of(shard),
        )
        for number, shard in enumerate(shards, 1)
    ]
