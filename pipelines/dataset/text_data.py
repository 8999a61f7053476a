"""Data of kind text: the recipe's section, and the tasks that turn it into a dataset."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from reducible.data import schemes
from reducible.data.formats import Documents
from reducible.data.hashes import InputFile
from reducible.data.known_entropy import KnownEntropy
from reducible.data.on_error import OnError
from reducible.data.sample import sample_files
from reducible.data.sources import Source, groups, listing
from reducible.models.config import LARGEST
from reducible.pipelines.dataset.data_section import DataSection
from reducible.pipelines.dataset.generated_section import Generated
from reducible.pipelines.dataset.tokenizer_section import BPE_VOCABULARY, TokenizerSection
from reducible.pipelines.recipe.fields import Location, Number
from reducible.tasks.count import Count
from reducible.tasks.dataset import tokenise
from reducible.tasks.dataset.input_files import by_content, paths_of, weight_of
from reducible.tasks.dataset.tokenise import (
    DatasetSpec,
    HeldOutSpec,
    InputsSpec,
    Reading,
    ShardSpec,
    TokenizerSpec,
    described,
)
from reducible.tasks.dataset.write_dataset import Naming
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task


class Tokenizer(TokenizerSection):
    """bytes; bpe: byte-level BPE trained on a sample of the data; file: an existing tokenizer.json."""

    kind: Literal["bytes", "bpe", "file"] = "bpe"
    vocabulary: Count = Field(default=BPE_VOCABULARY, ge=257, le=LARGEST)


class TextData(DataSection):
    """Documents of text: packed for language models, one by one for models of sentences."""

    paths = ("source", "validation", "tokenizer.path")
    kept = ("tokenizer",)

    kind: Literal["text"] = "text"
    source: Location | None = None
    generated: Generated | None = None
    validation: Location | None = Field(
        default=None, description="a separate source; otherwise a share of the documents"
    )
    validation_share: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    column: str | None = Field(default=None, description="of JSONL and Parquet; default text")
    documents: Documents = "file"
    on_error: OnError = "refuse"
    tokenizer: Tokenizer = Tokenizer()
    sequence: Count = 256
    mask_documents: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> "TextData":
        if (self.source is None) == (self.generated is None):
            raise ValueError(
                "give one of source (a file, folder, glob, builtin:stdlib, builtin:packages) and generated"
            )
        return self

    @property
    def may_test(self) -> bool:
        return False

    @property
    def masks_documents(self) -> bool:
        return self.mask_documents

    def facts(self, store: Store) -> dict[str, Any]:
        """The vocabulary, known before the tokenizer is trained: BPE never finds more than was asked for."""
        return {"vocabulary": self.tokenizer.known_vocabulary() or self.tokenizer.vocabulary}

    def known_entropy(self, content: Mapping[str, Any] | None) -> KnownEntropy | None:
        """Of a language model with the bytes tokenizer, which makes a token of each symbol."""
        if self.generated is None or self.tokenizer.kind != "bytes":
            return None
        return self.generated.source().known_entropy(self.sequence)

    def dataset_task(self, name: str, store: Store, tokenizers: Mapping[str, Task] | None = None) -> Task:
        source = source_of(self)
        files = listing(source, store.root / "hashes")
        share = self.validation_share if self.validation is None else 0.0
        tokenizer = tokenizers["tokenizer"] if tokenizers else _tokenizer_task(self, source, files, share)

        held_out: dict[str, Task] = {}
        validating: list[Task] = []
        if self.validation is not None:
            apart = Source(self.validation, self.column, self.documents, self.on_error, field="data.validation")
            apart_files = listing(apart, store.root / "hashes")
            held_out["held_out"] = _task(
                "held-out",
                "hold_out",
                HeldOutSpec(inputs=_inputs(apart, apart_files)),
                {},
                "held-out documents",
                apart,
                apart_files,
            )
            validating = _shard_tasks(apart, apart_files, {"tokenizer": tokenizer}, 0.0, "validation")
        training = _shard_tasks(
            source, files, {"tokenizer": tokenizer, **held_out}, share, "train" if self.validation is not None else None
        )
        shards = training + validating
        return Task(
            name="dataset",
            version=tokenise.VERSION,
            run="reducible.tasks.dataset.tokenise:gather",
            spec=DatasetSpec(),
            inputs={"tokenizer": tokenizer, **{f"shard-{index:06d}": shard for index, shard in enumerate(shards)}},
            label="dataset",
            execution=Naming(
                name=name,
                source=schemes.shown(self.source or f"generated:{self.generated.kind if self.generated else ''}"),
            ),
        )


def source_of(data: TextData) -> Source:
    if data.generated is not None:
        return Source(generated=data.generated.source())
    return Source(str(data.source), data.column, data.documents, data.on_error)


def _tokenizer_task(data: TextData, source: Source, files: list[InputFile], share: float) -> Task:
    wanted = data.tokenizer
    if (ready := wanted.ready_made()) is not None:
        return ready
    sampled = sample_files(files, wanted.sample)
    spec = TokenizerSpec(
        kind="bpe",
        vocabulary=wanted.vocabulary,
        sample=wanted.sample,
        inputs=_inputs(source, sampled),
        validation_share=share,
    )
    return _task("tokenizer", "make_tokenizer", spec, {}, f"tokenizer (BPE {wanted.vocabulary:,})", source, sampled)


def _shard_tasks(
    source: Source,
    files: list[InputFile],
    inputs: dict[str, Task],
    share: float,
    split: Literal["train", "validation"] | None,
) -> list[Task]:
    shards = groups(files)
    return [
        _task(
            "tokens",
            "tokenise_shard",
            ShardSpec(inputs=_inputs(source, shard), validation_share=share, split=split),
            inputs,
            f"tokens {split or ''} {index + 1}/{len(shards)}".replace("  ", " "),
            source,
            shard,
        )
        for index, shard in enumerate(shards)
    ]


def _task(
    name: str,
    function: str,
    spec: TokenizerSpec | ShardSpec | HeldOutSpec,
    inputs: dict[str, Task],
    label: str,
    source: Source,
    files: list[InputFile],
) -> Task:
    return Task(
        name=name,
        version=tokenise.VERSION,
        run=f"reducible.tasks.dataset.tokenise:{function}",
        spec=spec,
        inputs=inputs,
        label=label,
        execution=Reading(
            location=source.location,
            paths=paths_of(files),
            generated_documents=source.generated.documents if source.generated else None,
        ),
        weight=weight_of(files),
    )


def _inputs(source: Source, files: list[InputFile]) -> InputsSpec:
    generated = source.generated
    return InputsSpec(
        files=by_content(files),
        column=source.column,
        documents=source.documents,
        on_error=source.on_error,
        generated=None if generated is None else described(generated),
    )
