"""Seq2seq on data with published numbers: Multi30k, SCAN, grapheme-to-phoneme. Each task on one core.

    PYTHONPATH=. python benchmarks/seq2seq_references.py multi30k-en-de --work WORK
    PYTHONPATH=. python benchmarks/seq2seq_references.py multi30k-de-en --work WORK
    PYTHONPATH=. python benchmarks/seq2seq_references.py multi30k-de-en-none --work WORK
    PYTHONPATH=. python benchmarks/seq2seq_references.py scan --work WORK
    PYTHONPATH=. python benchmarks/seq2seq_references.py g2p --work WORK        # eight languages

A training that was killed goes on when the same command runs again. Everything that is chosen (epochs, dropout, length
penalty) was chosen on validation pairs; test pairs are scored once a command.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from reducible.data.batches import fixed
from reducible.data.pair_files import Pair
from reducible.data.pairs import Division, Pairs, write_pairs
from reducible.data.tokenizer import Tokenizer, train_bpe
from reducible.data.vocabulary import count_vocabulary, whole
from reducible.models.generate.beam_search import beam_search
from reducible.models.weights.model_folder import load_model
from reducible.tasks.train.examples import TrainingData, batches_of, lengths_of
from reducible.tasks.train.folders import MODEL
from reducible.tasks.train.loop import train
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record

DATASETS = Path(__file__).resolve().parents[2] / "shared" / "datasets"
Splits = dict[str, list[Pair]]


@dataclass(frozen=True)
class Task:
    name: str
    read: Callable[[Path], Splits]
    tokenizers: Callable[[list[Pair]], tuple[Tokenizer, Tokenizer]]
    score: Callable[[list[str], list[Pair]], str]
    sequence: int
    epochs: float
    batch: int
    model: dict[str, Any]
    rate: float = 3e-3
    decay: float = 0.01
    beam: int = 5
    alpha: float = 1.0
    seed: int = 0
    execution: dict[str, Any] = field(default_factory=dict)


# Data -------------------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def multi30k(source: str, target: str) -> Callable[[Path], Splits]:
    """Tokenised and lowercased, as it comes."""

    def read(datasets: Path) -> Splits:
        folder = datasets / "multi30k" / "tok"
        names = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
        return {
            split: [
                Pair(f"{name}:{number}", *pair)
                for number, pair in enumerate(
                    zip(*(lines(folder / f"{name}.lc.norm.tok.{side}") for side in (source, target)), strict=True)
                )
            ]
            for split, name in names.items()
        }

    return read


def scan(datasets: Path) -> Splits:
    """The simple split; one training pair in twenty validates."""

    def pairs(name: str) -> list[Pair]:
        found = (line.removeprefix("IN: ").split(" OUT: ") for line in lines(datasets / "scan" / name))
        return [Pair(f"{name}:{number}", *sides) for number, sides in enumerate(found)]

    train = pairs("tasks_train_simple.txt")
    return {
        "train": [pair for number, pair in enumerate(train) if number % 20],
        "validation": train[::20],
        "test": pairs("tasks_test_simple.txt"),
    }


def g2p(language: str) -> Callable[[Path], Splits]:
    def read(datasets: Path) -> Splits:
        files = {"train": "train", "validation": "dev", "test": "test"}
        return {
            split: [Pair(f"{name}:{number}", *line.split("\t")) for number, line in enumerate(found)]
            for split, name in files.items()
            if (found := lines(datasets / "g2p" / f"{language}_{name}.tsv"))
        }

    return read


def joint_bpe(vocabulary: int) -> Callable[[list[Pair]], tuple[Tokenizer, Tokenizer]]:
    def made(pairs: list[Pair]) -> tuple[Tokenizer, Tokenizer]:
        tokenizer = train_bpe((text for pair in pairs for text in (pair.source, pair.target)), vocabulary)
        return tokenizer, tokenizer

    return made


def small_vocabularies(source: Any, target: Any) -> Callable[[list[Pair]], tuple[Tokenizer, Tokenizer]]:
    """`words` or `characters` of either side."""

    def made(pairs: list[Pair]) -> tuple[Tokenizer, Tokenizer]:
        return (
            whole(count_vocabulary((pair.source for pair in pairs), source), source),
            whole(count_vocabulary((pair.target for pair in pairs), target), target),
        )

    return made


# Scores -----------------------------------------------------------------------------------------------------------


def bleu(found: list[str], pairs: list[Pair]) -> str:
    """Of text that is tokenised and lowercased already."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize="none", force=True)
    value = metric.corpus_score(found, [[pair.target for pair in pairs]])
    return f"BLEU {value.score:.2f} ({metric.get_signature()})"


def exact_match(found: list[str], pairs: list[Pair]) -> str:
    right = sum(text.split() == pair.target.split() for text, pair in zip(found, pairs, strict=True))
    return f"exact match {100 * right / len(pairs):.2f} % of {len(pairs)}"


def word_error_rate(found: list[str], pairs: list[Pair]) -> str:
    """Share of words whose pronunciation is not the given one; a word may be given with several."""
    given: dict[str, set[str]] = {}
    for pair in pairs:
        given.setdefault(pair.source, set()).add(pair.target)
    answers = {pair.source: text for pair, text in zip(pairs, found, strict=True)}
    wrong = sum(answers[word] not in spoken for word, spoken in given.items())
    return f"WER {100 * wrong / len(given):.2f} of {len(given)}"


# Tasks ------------------------------------------------------------------------------------------------------------

TRANSLATION = {"width": 192, "dropout": 0.3, "label_smoothing": 0.1}
LANGUAGES = ("ady", "bul", "dut", "fre", "hin", "ice", "jpn", "kor")


def tasks_of(name: str) -> list[Task]:
    if name.startswith("multi30k"):
        _, source, target, *attention = name.split("-")
        model = TRANSLATION | {"attention": attention[0] if attention else "luong"}
        return [Task(name, multi30k(source, target), joint_bpe(4000), bleu, 64, 9, 1024, model)]
    if name == "scan":
        words = small_vocabularies("words", "words")
        return [Task(name, scan, words, exact_match, 64, 15, 512, {"width": 128, "dropout": 0.1}, beam=1)]
    model = {"width": 128, "dropout": 0.4, "label_smoothing": 0.1}
    symbols = small_vocabularies("characters", "words")
    return [
        Task(f"g2p-{language}", g2p(language), symbols, word_error_rate, 48, 40, 512, model) for language in LANGUAGES
    ]


def specification(task: Task, tokenizers: tuple[Tokenizer, Tokenizer], examples: Pairs) -> TrainSpec:
    source, target = tokenizers
    sizes = {
        "source_vocabulary": source.vocabulary,
        "vocabulary": target.vocabulary,
        "shared": source is target,
    }
    units = int(examples.lengths.sum())
    steps = round(task.epochs * units / task.batch)
    return TrainSpec.model_validate(
        {
            "family": "seq2seq",
            "model": sizes | task.model,
            "sequence": task.sequence,
            "stop_step": steps,
            "batch": task.batch,
            "micro_batch": max(1, 2 * task.batch // task.sequence),
            "seed": task.seed,
            "optimizer": {"learning_rate": task.rate, "weight_decay": task.decay, "betas": (0.9, 0.98)},
            "schedule": {"kind": "wsd", "warmup_steps": steps // 20, "cooldown_steps": steps // 2},
            "validation": {"every": max(1, steps // round(task.epochs)), "examples": 1_000_000},
        }
    )


def answers(model: nn.Module, examples: Pairs, tokenizer: Tokenizer, task: Task) -> list[str]:
    """Sources of like length together."""
    texts = [""] * len(examples)
    order = np.argsort(examples.source_lengths, kind="stable")
    for indices in np.array_split(order, -(-len(order) // 50)):
        batch = {name: torch.as_tensor(array) for name, array in examples.batch(indices).items()}
        found = beam_search(model, batch, tokenizer.separator, task.sequence, task.beam, task.alpha)  # type: ignore[arg-type]
        for index, hypotheses in zip(indices, found, strict=True):
            texts[index] = tokenizer.decode(hypotheses[0].tokens).strip()
    return texts


def run(task: Task, datasets: Path, work: Path) -> None:
    pairs = task.read(datasets)
    source, target = task.tokenizers(pairs["train"])
    folders = {}
    for split, members in pairs.items():
        folders[split] = work / "pairs" / split
        write_pairs(members, source, target, folders[split], Division(split=split))  # type: ignore[arg-type]
    examples = {split: Pairs([folder], split, task.sequence, source, target) for split, folder in folders.items()}
    spec = specification(task, (source, target), examples["train"])
    held_out = examples["validation"]
    data = TrainingData(
        batches_of(examples["train"], spec.batch, spec.micro_batch, spec.seed),
        batches_of(held_out, spec.batch, spec.micro_batch, spec.seed),
        fixed(held_out, len(held_out), spec.micro_batch),
        None,
        lengths_of(examples["train"]),
    )
    execution = Execution(checkpoint_every=max(1, spec.stop_step // 10), keep_last=1, log_every=50)
    began = time.process_time()
    record = Record(work / "record", f"{time.time_ns()}")
    result = train(spec, execution, data=data, start=None, work=work, record=record)
    print(
        f"{task.name}: {result.parameters:,} parameters, {result.units / 1e6:.2f}M target tokens, validation "
        f"{result.validation_loss:.4f} nats, {result.units_per_second:,.0f} tokens/s, {result.seconds:.0f} s of which "
        f"this process had {time.process_time() - began:.0f} s of a core",
        flush=True,
    )
    model = load_model(work / MODEL).eval()
    for split in ("validation", "test"):
        began = time.perf_counter()
        texts = answers(model, examples[split], target, task)
        (work / f"{split}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        seconds = time.perf_counter() - began
        print(
            f"{task.name}: {split}, beam {task.beam}, length penalty {task.alpha}: {task.score(texts, pairs[split])} "
            f"({seconds:.0f} s)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="as above, or g2p-LANGUAGE's last part with --only")
    parser.add_argument("--datasets", type=Path, default=DATASETS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", help="of several tasks that whose name ends so")
    parser.add_argument(
        "--set", default="{}", help='JSON that overrides, such as {"epochs": 5, "model": {"width": 64}}'
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    changes = json.loads(arguments.set)
    for task in tasks_of(arguments.name):
        if task.name.endswith(arguments.only or ""):
            model = task.model | changes.get("model", {})
            changed = Task(**{**task.__dict__, **changes, "model": model})
            run(changed, arguments.datasets, arguments.work / task.name)


if __name__ == "__main__":
    main()
