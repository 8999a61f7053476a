"""The tasks that turn a recipe's data section into a dataset, and what its models must know of it beforehand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from reducible.data.markov import MarkovText
from reducible.data.sample import sample_files
from reducible.data.sources import InputFile, Source, groups, listing
from reducible.data.tokenizer import byte_tokenizer, from_file
from reducible.models.cost.ledger import Lengths
from reducible.pipelines.recipe.pairs_section import PairData
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.recipe.series_section import SeriesData
from reducible.pipelines.recipe.text_section import TextData
from reducible.tasks.dataset import tokenise
from reducible.tasks.dataset.tokenise import (
    DatasetSpec,
    FileSpec,
    HeldOutSpec,
    InputsSpec,
    Naming,
    Reading,
    ShardSpec,
    TokenizerSpec,
)
from reducible.tasks.workflow.store import Store, sha256_of
from reducible.tasks.workflow.task import Task


def model_facts(recipe: Recipe, store: Store) -> dict[str, Any]:
    """The keys of a model's configuration that the data decides (models/families/registry.py, FROM_DATA)."""
    data = recipe.data
    if isinstance(data, PairData):
        from reducible.pipelines.dataset.pairs_tasks import pair_facts

        return pair_facts(data, store)
    if isinstance(data, SeriesData):
        from reducible.pipelines.dataset.series_tasks import series_facts

        return series_facts(data, store)
    return {"vocabulary": vocabulary_of(data)}


def dataset_task(recipe: Recipe, store: Store, tokenizers: Mapping[str, Task] | None = None) -> Task:
    """The task that makes the dataset; inputs are listed and hashed now (hashes are remembered under the root).

    `tokenizers`: those of a base model, instead of what the recipe says.
    """
    if isinstance(recipe.data, PairData):
        from reducible.pipelines.dataset.pairs_tasks import pair_dataset_task

        return pair_dataset_task(recipe, store, tokenizers)
    if isinstance(recipe.data, SeriesData):
        from reducible.pipelines.dataset.series_tasks import series_dataset_task

        return series_dataset_task(recipe, store)
    return text_dataset_task(recipe, recipe.data, store, tokenizers)


def lengths_of(recipe: Recipe, store: Store, dataset: Task, reads: str) -> Lengths:
    """How long examples are: exact for packed text, else measured once the dataset is there, before that its bounds."""
    sequence = recipe.data.sequence
    if reads == "text":
        return Lengths.fixed(sequence)
    if not store.committed("dataset", dataset.identity):
        return Lengths.fixed(sequence, sequence if reads == "pairs" else 0)
    from reducible.tasks.dataset.dataset import open_dataset
    from reducible.tasks.train.examples import lengths_of as measured

    return measured(open_dataset(store.artifact("dataset", dataset.identity)).examples(reads, "train", sequence))


def vocabulary_of(data: TextData) -> int:
    """The model's vocabulary, known before the tokenizer is trained: BPE never finds more than was asked for."""
    tokenizer = data.tokenizer
    if tokenizer.kind == "bytes":
        return byte_tokenizer().vocabulary
    if tokenizer.kind == "file":
        return from_file(Path(str(tokenizer.path)), tokenizer.separator).vocabulary
    return tokenizer.vocabulary


def text_dataset_task(
    recipe: Recipe, data: TextData, store: Store, tokenizers: Mapping[str, Task] | None = None
) -> Task:
    source = source_of(data)
    files = listing(source, store.root / "hashes")
    share = data.validation_share if data.validation is None else 0.0
    tokenizer = tokenizers["tokenizer"] if tokenizers else _tokenizer_task(data, source, files, share)

    held_out: dict[str, Task] = {}
    validating: list[Task] = []
    if data.validation is not None:
        apart = Source(data.validation, data.column, data.documents, data.on_error)
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
        source, files, {"tokenizer": tokenizer, **held_out}, share, "train" if data.validation is not None else None
    )
    shards = training + validating
    return Task(
        name="dataset",
        version=tokenise.VERSION,
        run="reducible.tasks.dataset.tokenise:gather",
        spec=DatasetSpec(),
        inputs={"tokenizer": tokenizer, **{f"shard-{index:06d}": shard for index, shard in enumerate(shards)}},
        label="dataset",
        execution=Naming(name=recipe.name, source=data.source or "generated:markov"),
    )


def source_of(data: TextData) -> Source:
    if data.generated is not None:
        described = data.generated.model_dump(exclude={"kind"})
        return Source(generated=MarkovText(**described))
    return Source(str(data.source), data.column, data.documents, data.on_error)


def _tokenizer_task(data: TextData, source: Source, files: list[InputFile], share: float) -> Task:
    wanted = data.tokenizer
    if wanted.kind == "file":
        path = Path(str(wanted.path))
        from_file(path, wanted.separator)  # a wrong path or file is said now, before anything runs
        spec = TokenizerSpec(kind="file", sha256=sha256_of(path), separator=wanted.separator)
        reading = Reading(location=str(path), paths={})
        return Task(
            "tokenizer",
            tokenise.VERSION,
            "reducible.tasks.dataset.tokenise:make_tokenizer",
            spec,
            label="tokenizer",
            execution=reading,
        )
    if wanted.kind == "bytes":
        return Task(
            "tokenizer",
            tokenise.VERSION,
            "reducible.tasks.dataset.tokenise:make_tokenizer",
            TokenizerSpec(kind="bytes"),
            label="tokenizer",
        )
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
            paths={file.name: file.path for file in files},
            generated_documents=source.generated.documents if source.generated else None,
        ),
        weight=float(sum(file.size for file in files)),
    )


def _inputs(source: Source, files: list[InputFile]) -> InputsSpec:
    generated = source.generated
    described = None if generated is None else {key: value for key, value in vars(generated).items() if key in _CHAIN}
    return InputsSpec(
        files=tuple(FileSpec(name=file.name, size=file.size, sha256=file.sha256) for file in files),
        column=source.column,
        documents=source.documents,
        on_error=source.on_error,
        generated=described,
    )


# How many documents there are is no part of it: a piece that is there already stays as it is when more are asked for.
_CHAIN = ("length", "order", "symbols", "sharpness", "seed")
