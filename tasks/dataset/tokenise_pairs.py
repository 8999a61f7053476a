"""From pairs of texts to token files: a tokenizer for each side or for both, one task per input shard, a dataset."""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from reducible.data.errors import DataError
from reducible.data.generated_pairs import GeneratedPairs
from reducible.data.hashes import InputFile
from reducible.data.on_error import OnError
from reducible.data.pair_files import LeftOut, PairSource, read_pairs
from reducible.data.pair_texts import Side, training_texts
from reducible.data.pairs import SPLITS, Division, HeldOut, Pairs, SplitBy, statistics, write_pairs
from reducible.data.tokenizer import Tokenizer, train_bpe
from reducible.data.vocabulary import count_vocabulary, whole
from reducible.tasks.dataset.input_files import FileSpec, on_this_machine
from reducible.tasks.dataset.write_dataset import Naming, Shards, copied_tokenizer, write_dataset
from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.task import Context

VERSION = 3
_NAMED = 1000  # the most skipped lines that are named; the count includes all
_STATISTICS = "read.json"


class PairInputsSpec(Frozen):
    """The files, and how pairs are read from them."""

    files: tuple[FileSpec, ...]
    parallel: bool = False
    columns: tuple[str, str] | tuple[int, int] | None = None
    lowercase: bool = False
    on_error: OnError = "refuse"
    generated: dict[str, Any] | None = None


class PairReading(Frozen):
    """Execution: where this machine finds the inputs."""

    paths: Mapping[str, str]
    generated_examples: int | None = None


class DivisionSpec(Frozen):
    by: SplitBy
    share: float
    split: Literal["train", "validation", "test"] | None = None

    @property
    def division(self) -> Division:
        return Division(self.by, self.share, self.split)


class VocabularySpec(Frozen):
    """A tokenizer that is made from the training pairs."""

    kind: Literal["bpe", "words", "characters"]
    side: Side
    vocabulary: int | None
    sample: int | None = None  # bpe: bytes trained on
    least_count: int = 1  # words, characters: anything seen less often is unknown
    inputs: PairInputsSpec
    division: DivisionSpec


class HeldOutPairsSpec(Frozen):
    inputs: PairInputsSpec
    division: DivisionSpec


class PairShardSpec(Frozen):
    inputs: PairInputsSpec
    division: DivisionSpec


class PairDatasetSpec(Frozen):
    """Its identity is the shards, whether both sides share a tokenizer, and how a text is read."""

    shared: bool
    lowercase: bool = False


class PairNaming(Naming):
    """Execution: what people call the dataset, and the truth about generated pairs."""

    apart: Mapping[str, str] = {}  # sources of validation and test, where they have their own
    generated: dict[str, Any] | None = None


def pair_inputs_of(spec: PairInputsSpec, reading: PairReading) -> tuple[list[InputFile], PairSource]:
    """The files with their places on this machine, and the source that reads them."""
    files = on_this_machine(spec.files, reading.paths)
    if spec.generated is not None:
        generated = GeneratedPairs(examples=reading.generated_examples or 1, **spec.generated)
        return files, PairSource(generated=generated)
    locations = tuple(file.path for file in files[: 2 if spec.parallel else 1])
    return files, PairSource(locations, spec.columns, spec.lowercase, spec.on_error)


def vocabulary_items(spec: VocabularySpec, reading: PairReading) -> list[str]:
    """The words or characters of the vocabulary. The planner calls this too, to know how many there are."""
    assert spec.kind != "bpe"
    files, source = pair_inputs_of(spec.inputs, reading)
    texts = training_texts(files, source, spec.side, spec.division.division)
    return count_vocabulary(texts, spec.kind, spec.vocabulary, spec.least_count)


def make_pair_tokenizer(context: Context) -> None:
    """Takes no inputs. Writes what Tokenizer.load reads."""
    spec: VocabularySpec = context.spec
    if spec.kind == "bpe":
        assert spec.vocabulary is not None
        files, source = pair_inputs_of(spec.inputs, context.execution)
        texts = training_texts(files, source, spec.side, spec.division.division, spec.sample)
        tokenizer = train_bpe(texts, spec.vocabulary)
    else:
        tokenizer = whole(vocabulary_items(spec, context.execution), spec.kind)
    tokenizer.save(context.staging)


def hold_out_pairs(context: Context) -> None:
    """Writes the content keys of the texts for validation and test, so that no pair with one is trained on."""
    spec: HeldOutPairsSpec = context.spec
    files, source = pair_inputs_of(spec.inputs, context.execution)
    HeldOut.of(read_pairs(files, source, LeftOut()), spec.division.division).save(context.staging)


def tokenise_pairs(context: Context) -> None:
    """Inputs: tokenizer, source_tokenizer, and any number of held-out-N."""
    spec: PairShardSpec = context.spec
    files, source = pair_inputs_of(spec.inputs, context.execution)
    held_out = [folder for name, folder in sorted(context.inputs.items()) if name.startswith("held-out")]
    left_out = LeftOut()
    write_pairs(
        read_pairs(files, source, left_out),
        Tokenizer.load(context.inputs["source_tokenizer"]),
        Tokenizer.load(context.inputs["tokenizer"]),
        context.staging,
        spec.division.division,
        HeldOut.load(*held_out) if held_out else None,
    )
    skipped = [str(item) for item in left_out.skipped]
    content = {"empty": left_out.empty, "skipped": len(skipped), "skipped_inputs": skipped[:_NAMED]}
    (context.staging / _STATISTICS).write_text(json.dumps(content, indent=1) + "\n")


def gather_pairs(context: Context) -> None:
    """Writes the dataset: its shards in the order of their inputs, both tokenizers, totals, and what was left out."""
    naming: PairNaming = context.execution
    shards = Shards(context, SPLITS, statistics)
    read = [json.loads((folder / _STATISTICS).read_text()) for folder in shards.folders]
    totals, held_out = shards.totals(), shards.total("held_out")
    _refuse_empty(naming, {split: totals[split]["pairs"] for split in SPLITS}, held_out)
    source_tokenizer, tokenizer = (copied_tokenizer(context, name) for name in ("source_tokenizer", "tokenizer"))
    examples = {
        split: Pairs(shards.folders, split, 2**30, source_tokenizer, tokenizer)
        for split in SPLITS
        if totals[split]["pairs"]
    }
    content: dict[str, Any] = {
        "kind": "pairs",
        "name": naming.name,
        "source": naming.source,
        "fingerprint": shards.fingerprint,
        "source_tokenizer": source_tokenizer.identity,
        "tokenizer": tokenizer.identity,
        "shared": context.spec.shared,
        "lowercase": context.spec.lowercase,
        "source_vocabulary": source_tokenizer.vocabulary,
        "vocabulary": tokenizer.vocabulary,
        "splits": {split: {"tokens": int(pairs.lengths.sum()), **totals[split]} for split, pairs in examples.items()},
        "lengths": {split: _lengths(pairs) for split, pairs in examples.items()},
        "truth": _truth(naming.generated, examples),
        "held_out": held_out,
        "empty": sum(shard["empty"] for shard in read),
        "skipped": sum(shard["skipped"] for shard in read),
        "skipped_inputs": [name for shard in read for name in shard["skipped_inputs"]],
        "shards": shards.places,
    }
    shown = ("source", "fingerprint", "shared", "source_vocabulary", "vocabulary", "held_out", "empty", "skipped")
    write_dataset(context, content, shown, _note(content, examples))


def _refuse_empty(naming: PairNaming, pairs: Mapping[str, int], held_out: int) -> None:
    for split, place in naming.apart.items():
        if not pairs[split]:
            raise DataError(f"data.{split}: {place} holds no pairs")
    for split in ("train", "validation"):
        if not pairs[split]:
            why = f"{pairs['train']:,} pairs for train, {pairs['validation']:,} for validation"
            if held_out:
                why += f"; {held_out:,} are left out because validation or test has one of their texts"
            raise DataError(
                f"data.source: {naming.source} leaves the {split} split empty ({why}); give more different pairs, "
                "another data.validation_share, or a source for validation (data.validation)"
            )


def _lengths(pairs: Pairs) -> dict[str, dict[str, int]]:
    """Lengths that half, 90 %, 99 % and all of the pairs do not exceed, in tokens with the end."""
    shares = {"half": 0.5, "90 %": 0.9, "99 %": 0.99, "all": 1.0}
    return {
        side: {name: int(np.quantile(lengths, share, method="higher")) for name, share in shares.items()}
        for side, lengths in (("source", pairs.source_lengths), ("target", pairs.lengths))
    }


def _truth(generated: dict[str, Any] | None, examples: dict[str, Pairs]) -> dict[str, dict[str, float]] | None:
    """Nats per target unit of generated pairs, by split: `expected` is their conditional entropy, `loss` what the
    source that made them scores on exactly these pairs."""
    if generated is None:
        return None
    source, truth = GeneratedPairs(**generated), {}
    for split, pairs in examples.items():
        texts = pairs.texts(range(len(pairs)))
        units = float(pairs.lengths.sum())
        symbols = sum(len(target.split()) for _, target in texts)
        loss = math.fsum(source.nats_of(*text) for text in texts)
        truth[split] = {"expected": source.entropy_per_symbol * symbols / units, "loss": loss / units}
    return truth


def _note(content: dict[str, Any], examples: dict[str, Pairs]) -> str:
    lines = ["| split | pairs | source tokens | target tokens | unknown | longest source, target of 90 % | of all |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for split, counts in content["splits"].items():
        longest = content["lengths"][split]
        unknown = counts["source_unknown"] + counts["target_unknown"]
        spans = " | ".join(f"{longest['source'][key]}, {longest['target'][key]}" for key in ("90 %", "all"))
        lines.append(
            f"| {split} | {counts['pairs']:,} | {counts['source_tokens']:,} | {counts['target_tokens']:,} "
            f"| {unknown:,} | {spans} |"
        )
    note = "\n".join(lines) + "\n\nLengths include the end. A side longer than data.sequence is cut in training."
    if content["held_out"]:
        note += (
            f"\n\n{content['held_out']:,} pairs are left out of training: validation or test has one of their texts."
        )
    if content["truth"] is not None:
        losses = "; ".join(
            f"{split}: {truth['loss']:.4f} on these pairs, {truth['expected']:.4f} on average"
            for split, truth in content["truth"].items()
        )
        note += f"\n\nThe loss of the source that made the pairs, in nats per target token: {losses}."
    return f"{note}\n\n| source | target |\n|---|---|\n" + "\n".join(
        f"| {_cell(source)} | {_cell(target)} |"
        for pairs in examples.values()
        for source, target in pairs.texts(range(min(3, len(pairs))))
    )


def _cell(text: str) -> str:
    """The text for a cell of a table, where a bar would end the cell and a line break the row."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 200 else text[:200] + " ..."
