"""From text to token shards: a tokenizer, one task per input shard, and a dataset that names them all."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reducible.data.errors import DataError
from reducible.data.formats import Documents
from reducible.data.hashes import InputFile
from reducible.data.markov import MarkovText
from reducible.data.on_error import OnError
from reducible.data.sample import sample_texts
from reducible.data.shards import SPLITS, statistics, tokenise_files, verify
from reducible.data.sources import Source, read
from reducible.data.split import content_key
from reducible.data.tokenizer import Tokenizer, byte_tokenizer, from_file, train_bpe
from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.identity import fingerprint
from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.store import MANIFEST
from reducible.tasks.workflow.task import Context

VERSION = 2


class FileSpec(Frozen):
    """An input by content; its place is execution."""

    name: str
    size: int
    sha256: str


class InputsSpec(Frozen):
    """The files, and how documents are cut from them."""

    files: tuple[FileSpec, ...]
    column: str | None = None
    documents: Documents = "file"
    on_error: OnError = "refuse"
    generated: dict[str, int | float] | None = None


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


class Naming(Frozen):
    """Execution: what people call the dataset."""

    name: str
    source: str


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
    tokenizer_folder = context.inputs["tokenizer"]
    shards = [folder for name, folder in sorted(context.inputs.items()) if name.startswith("shard-")]
    for folder in shards:
        verify(folder)
    counted = [statistics(folder) for folder in shards]
    splits: dict[str, dict[str, int]] = {
        split: {key: sum(shard["splits"][split][key] for shard in counted) for key in ("tokens", "bytes", "documents")}
        for split in SPLITS
    }
    skipped = [name for shard in counted for name in shard["skipped_inputs"]]
    for split in SPLITS:
        if splits[split]["tokens"] < 2:
            other = " and ".join(f"{splits[side]['documents']} documents for {side}" for side in SPLITS)
            raise DataError(
                f"data.source: {context.execution.source} leaves the {split} split empty ({other}); cut the text into "
                "more documents (data.documents: paragraph or line), or name a source for validation (data.validation)"
            )
    tokenizer = Tokenizer.load(tokenizer_folder)
    content: dict[str, Any] = {
        "kind": "text",
        "name": context.execution.name,
        "source": context.execution.source,
        "fingerprint": fingerprint([[shard["splits"][split]["content"] for split in SPLITS] for shard in counted]),
        "tokenizer": tokenizer.identity,
        "vocabulary": tokenizer.vocabulary,
        "splits": splits,
        "empty": sum(shard["empty"] for shard in counted),
        "held_out": sum(shard["held_out"] for shard in counted),
        "skipped": sum(shard["skipped"] for shard in counted),
        "skipped_inputs": skipped,
        # Relative to this artifact, so that the root may be moved or mounted elsewhere.
        "shards": [f"../../{folder.parent.name}/{folder.name}" for folder in shards],
    }
    shutil.copytree(tokenizer_folder, context.staging / "tokenizer", ignore=shutil.ignore_patterns(MANIFEST))
    (context.staging / "dataset.json").write_text(json.dumps(content, indent=1) + "\n")
    _record(context, content)


def _record(context: Context, content: dict[str, Any]) -> None:
    record = Record(context.staging / "record", context.attempt)
    totals = {f"{split}.{key}": value for split, counts in content["splits"].items() for key, value in counts.items()}
    shown = {key: content[key] for key in ("source", "fingerprint", "vocabulary", "empty", "skipped", "held_out")}
    record.describe("dataset", f"data {content['name']}", {**shown, **totals}, context.tags)
    lines = [
        f"| {split} | {counts['documents']:,} | {counts['bytes']:,} | {counts['tokens']:,} |"
        for split, counts in content["splits"].items()
    ]
    note = "| split | documents | bytes | tokens |\n|---|---:|---:|---:|\n" + "\n".join(lines)
    if content["skipped"]:
        note += f"\n\n**{content['skipped']} inputs were skipped:**\n\n" + "\n".join(
            f"- {name}" for name in content["skipped_inputs"][:100]
        )
    record.note(note)


def inputs_of(spec: InputsSpec, reading: Reading) -> tuple[list[InputFile], Source]:
    """The files with their places on this machine, and the source that reads them."""
    files = [InputFile(file.name, reading.paths.get(file.name, ""), file.size, file.sha256) for file in spec.files]
    if spec.generated is not None:
        chain: dict[str, Any] = dict(spec.generated)
        return files, Source(generated=MarkovText(documents=reading.generated_documents or 1, **chain))
    return files, Source(reading.location, spec.column, spec.documents, spec.on_error)
