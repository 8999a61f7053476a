"""From text to token shards: a tokenizer, one task per input shard, and a dataset that names them all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reducible.data.errors import DataError
from reducible.data.formats import Documents
from reducible.data.generated_text import GeneratedText
from reducible.data.generated_texts import TEXTS
from reducible.data.hashes import InputFile
from reducible.data.markov import MarkovText
from reducible.data.on_error import OnError
from reducible.data.sample import sample_texts
from reducible.data.shards import SPLITS, statistics, tokenise_files
from reducible.data.sources import Source, read
from reducible.data.split import content_key
from reducible.data.tokenizer import Tokenizer, byte_tokenizer, from_file, train_bpe
from reducible.tasks.dataset.input_files import FileSpec, on_this_machine
from reducible.tasks.dataset.write_dataset import Naming, Shards, copied_tokenizer, write_dataset
from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.task import Context

VERSION = 2


class InputsSpec(Frozen):
    """The files, and how documents are cut from them."""

    files: tuple[FileSpec, ...]
    column: str | None = None
    documents: Documents = "file"
    on_error: OnError = "refuse"
    generated: dict[str, int | float | str] | None = None


class Reading(Frozen):
    """Execution: where this machine finds the inputs."""

    location: str
    paths: Mapping[str, str]
    generated_documents: int | None = None


class TokenizerSpec(Frozen):
    kind: Literal["bytes", "bpe", "file"]
    vocabulary: int | None = None  # bpe: number of ids wanted
    sample: int | None = None  # bpe: bytes trained on
    inputs: InputsSpec | None = None  # bpe: the files of the sample
    validation_share: float = 0.0  # bpe: share of documents kept for validation, on which it is not trained
    sha256: str | None = None  # file: hash of the tokenizer.json
    separator: str | None = None  # file: the token that ends a text


class ShardSpec(Frozen):
    inputs: InputsSpec
    validation_share: float
    split: Literal["train", "validation"] | None = None


class HeldOutSpec(Frozen):
    inputs: InputsSpec


class DatasetSpec(Frozen):
    """Empty: the shards are the whole identity, and the name that a recipe gives them is no part of it."""


def make_tokenizer(context: Context) -> None:
    spec: TokenizerSpec = context.spec
    if spec.kind == "bytes":
        tokenizer = byte_tokenizer()
    elif spec.kind == "file":
        tokenizer = from_file(Path(context.execution.location), spec.separator)
    else:
        assert spec.inputs is not None and spec.vocabulary is not None and spec.sample is not None
        files, source = inputs_of(spec.inputs, context.execution)
        tokenizer = train_bpe(sample_texts(files, source, spec.sample, spec.validation_share), spec.vocabulary)
    tokenizer.save(context.staging)


def hold_out(context: Context) -> None:
    """Writes the content keys of a separate validation source, so that none of its documents is trained on."""
    files, source = inputs_of(context.spec.inputs, context.execution)
    keys = [content_key(document.text.encode()) for document in read(files, source, [])]
    np.save(context.staging / "keys.npy", np.unique(np.array(keys, np.uint64)))


def tokenise_shard(context: Context) -> None:
    spec: ShardSpec = context.spec
    files, source = inputs_of(spec.inputs, context.execution)
    held_out = np.load(context.inputs["held_out"] / "keys.npy") if "held_out" in context.inputs else None
    tokenise_files(
        files,
        source,
        Tokenizer.load(context.inputs["tokenizer"]),
        context.staging,
        validation=spec.validation_share,
        split=spec.split,
        held_out=held_out,
    )


def gather(context: Context) -> None:
    """Writes the dataset: its shards in the order of their inputs, totals, and the name of every skipped input."""
    naming: Naming = context.execution
    shards = Shards(context, SPLITS, statistics)
    splits = shards.totals()
    for split in SPLITS:
        if splits[split]["tokens"] < 2:
            other = " and ".join(f"{splits[side]['documents']} documents for {side}" for side in SPLITS)
            raise DataError(
                f"data.source: {naming.source} leaves the {split} split empty ({other}); cut the text into "
                "more documents (data.documents: paragraph or line), or name a source for validation (data.validation)"
            )
    tokenizer = copied_tokenizer(context, "tokenizer")
    content = {
        "kind": "text",
        "name": naming.name,
        "source": naming.source,
        "fingerprint": shards.fingerprint,
        "tokenizer": tokenizer.identity,
        "vocabulary": tokenizer.vocabulary,
        "splits": splits,
        "empty": shards.total("empty"),
        "held_out": shards.total("held_out"),
        "skipped": shards.total("skipped"),
        "skipped_inputs": [name for shard in shards.counted for name in shard["skipped_inputs"]],
        "shards": shards.places,
    }
    lines = [
        f"| {split} | {counts['documents']:,} | {counts['bytes']:,} | {counts['tokens']:,} |"
        for split, counts in splits.items()
    ]
    note = "| split | documents | bytes | tokens |\n|---|---:|---:|---:|\n" + "\n".join(lines)
    shown = ("source", "fingerprint", "vocabulary", "empty", "skipped", "held_out")
    write_dataset(context, content, shown, note)


def described(source: GeneratedText) -> dict[str, int | float | str]:
    """The settings of a generated source as they enter the identity; no kind means the first that there was."""
    return source.described() | ({} if source.kind == MarkovText.kind else {"kind": source.kind})


def inputs_of(spec: InputsSpec, reading: Reading) -> tuple[list[InputFile], Source]:
    """The files with their places on this machine, and the source that reads them."""
    files = on_this_machine(spec.files, reading.paths)
    if spec.generated is not None:
        settings: dict[str, Any] = dict(spec.generated)
        text = TEXTS[settings.pop("kind", MarkovText.kind)]
        return files, Source(generated=text(documents=reading.generated_documents or 1, **settings))
    return files, Source(reading.location, spec.column, spec.documents, spec.on_error)
