"""A sequence VAE against LSTM language models on sentences out of docstrings: likelihood, and what the latent holds.

Each contestant trains on the same sentences, in the same order, for the same tokens, one thread, no dropout; results
go to results.jsonl in --work, one line each, and one that is there is not trained again.

    lstm          language model of the same width: the VAE's decoder without z
    lstm-equal    language model with as many parameters as the VAE
    collapsed     VAE, plain ELBO from the first step
    cured         VAE with the remedies of recipes/vae.yaml
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from reducible.data.batches import fixed
from reducible.data.docstrings import corpus
from reducible.data.sentences import Sentences
from reducible.data.shards import write_shard
from reducible.data.sources import Document
from reducible.data.tokenizer import train_bpe
from reducible.models.cost.ledger import Lengths
from reducible.models.families.registry import family
from reducible.models.loss import IGNORE
from reducible.models.weights.model_folder import load_model
from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.evaluate.evaluate_sentences import measure
from reducible.tasks.train.examples import TrainingData, batches_of, lengths_of
from reducible.tasks.train.folders import MODEL
from reducible.tasks.train.loop import train
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record

SEQUENCE = 48
PLAIN = {"kl_schedule": "none"}
REMEDIES = {"kl_schedule": "linear", "free_bits": 0.5}


def make_dataset(folder: Path, source: str, vocabulary: int) -> Path:
    """A dataset artifact as the `dataset` task leaves it, without the store around it. Made once."""
    if (folder / "dataset.json").is_file():
        return folder
    lines = corpus(source.removeprefix("builtin:"), "txt", folder / "cache")[1].read_text().splitlines()
    tokenizer = train_bpe(lines, vocabulary)
    written = write_shard(
        [Document(str(number), line) for number, line in enumerate(lines)], tokenizer, folder / "shard"
    )
    tokenizer.save(folder / "tokenizer")
    content = {
        "name": source,
        "source": source,
        "kind": "text",
        "fingerprint": "benchmark",
        "tokenizer": tokenizer.identity,
        "vocabulary": tokenizer.vocabulary,
        "splits": written["splits"],
        "shards": ["shard"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def contestants(vocabulary: int, width: int, latent: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> family and its settings."""
    base = {"vocabulary": vocabulary, "width": width, "depth": 1}
    lengths = Lengths.fixed(SEQUENCE)
    vae, lstm = family("vae"), family("recurrent")
    target = vae.cost(vae.config(**base, latent=latent), lengths).parameters
    equal = min(
        (replace(lstm.config(**base), width=wider) for wider in range(width, 3 * width, 2)),
        key=lambda config: abs(lstm.cost(config, lengths).parameters - target),
    )
    return {
        "lstm": ("recurrent", base),
        "lstm-equal": ("recurrent", base | {"width": equal.width}),
        "collapsed": ("vae", base | {"latent": latent} | PLAIN),
        "cured": ("vae", base | {"latent": latent} | REMEDIES),
    }


def training_data(dataset: Any, spec: TrainSpec) -> TrainingData:
    """Sentences, also for a language model, which otherwise reads packed text."""
    split = {name: dataset.examples("sentences", name, SEQUENCE) for name in ("train", "validation")}
    return TrainingData(
        batches_of(split["train"], spec.batch, spec.micro_batch, spec.seed),
        batches_of(split["validation"], spec.batch, spec.micro_batch, spec.seed),
        fixed(split["validation"], spec.validation.examples, 4096 // SEQUENCE),
        dataset.unit_bytes(),
        lengths_of(split["train"]),
    )


def language_model(model: Any, examples: Sentences, units: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Exact nats of the sentences that `measure` takes for the same units."""
    count = max(1, min(len(examples), int(units / float(examples.lengths.mean()))))
    nats, tokens = [], []
    with torch.inference_mode():
        for indices in fixed(examples, count, 64):
            batch = {name: torch.as_tensor(array) for name, array in examples.batch(indices).items()}
            logits_BTV = model.logits(batch["inputs"]).float()
            nats_BT = F.cross_entropy(
                logits_BTV.transpose(1, 2), batch["targets"], ignore_index=IGNORE, reduction="none"
            )
            nats.append(nats_BT.double().sum(1))
            tokens.append((batch["targets"] != IGNORE).sum(1))
    nats_N, tokens_N = torch.cat(nats), torch.cat(tokens)
    per_token = float(nats_N.sum() / tokens_N.sum())
    error = float(nats_N.std()) / math.sqrt(count)
    names = ("loss", "importance_weighted")
    numbers = (
        {name: per_token for name in names}
        | {f"{name}_per_sentence": float(nats_N.mean()) for name in names}
        | {f"{name}_per_sentence_standard_error": error for name in names}
        | {"perplexity": math.exp(per_token), "sentences": count}
    )
    return numbers, {"importance_weighted": nats_N.tolist()}


def run(name: str, kind: str, model: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    dataset = open_dataset(arguments.work / "data")
    steps = arguments.tokens // arguments.batch
    spec = TrainSpec(
        family=kind,
        model=model,
        sequence=SEQUENCE,
        stop_step=steps,
        batch=arguments.batch,
        micro_batch=16,
        optimizer={"learning_rate": arguments.rate},  # type: ignore[arg-type]
        schedule={"kind": "wsd", "warmup_steps": steps // 50, "cooldown_steps": steps // 4},  # type: ignore[arg-type]
        validation={"every": max(1, steps // 20), "examples": 400},  # type: ignore[arg-type]
    )
    work = arguments.work / name
    began = time.process_time()
    result = train(
        spec,
        Execution(log_every=max(1, steps // 100), checkpoint_every=max(1, steps // 10)),
        data=training_data(dataset, spec),
        start=None,
        work=work,
        record=Record(work / "record", str(time.time_ns())),
    )
    trained = time.process_time() - began
    trained_model = load_model(work / MODEL)
    examples = dataset.examples("sentences", "validation", SEQUENCE)
    torch.manual_seed(0)
    if kind == "vae":
        numbers, by_sentence = measure(
            trained_model, examples, dataset.unit_bytes(), arguments.units, arguments.importance
        )
    else:
        numbers, by_sentence = language_model(trained_model, examples, arguments.units)
    seconds = time.process_time() - began
    return {
        "name": name,
        "model": model,
        "parameters": result.parameters,
        "train_loss": result.train_loss,
        "flops": result.flops,
        "training_core_seconds": trained,
        "core_seconds": seconds,
        **numbers,
        "by_sentence": by_sentence["importance_weighted"],
    }


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| | parameters | -ELBO | IW-NLL | against the first | perplexity | KL | mutual information | active units "
        "| core seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in results:
        error = 1.96 * one["importance_weighted_per_sentence_standard_error"]
        beside_N = np.array(one["by_sentence"]) - np.array(results[0]["by_sentence"])
        beside = f"{beside_N.mean():+.2f} ± {1.96 * beside_N.std(ddof=1) / math.sqrt(len(beside_N)):.2f}"
        latent = "- | - | -"
        if "kl_per_sentence" in one:
            lower, upper = (one[f"mutual_information{end}_per_sentence"] for end in ("", "_upper"))
            latent = (
                f"{one['kl_per_sentence']:.2f} | {lower:.2f} to {upper:.2f} | {one['active_units']}/{one['latent']}"
            )
        lines.append(
            f"| {one['name']} | {one['parameters']:,} | {one['loss_per_sentence']:.2f} "
            f"| {one['importance_weighted_per_sentence']:.2f} ± {error:.2f} | {beside} "
            f"| {one['perplexity']:.2f} | {latent} | {one['training_core_seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestants", nargs="*", default=["lstm", "lstm-equal", "collapsed", "cured"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--source", default="builtin:docstrings-packages")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--latent", type=int, default=8)
    parser.add_argument("--tokens", type=lambda text: int(float(text)), default=4_000_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=8e-3)
    parser.add_argument("--importance", type=int, default=500)
    parser.add_argument("--units", type=int, default=10_000)
    arguments = parser.parse_args()
    dataset = make_dataset(arguments.work / "data", arguments.source, arguments.vocabulary)
    vocabulary = json.loads((dataset / "dataset.json").read_text())["vocabulary"]
    every = contestants(vocabulary, arguments.width, arguments.latent)
    path = arguments.work / "results.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    for name in arguments.contestants:
        if all(one["name"] != name for one in known):
            known.append(run(name, *every[name], arguments))
            with path.open("a") as file:
                file.write(json.dumps(known[-1]) + "\n")
        print(table(known), flush=True)


if __name__ == "__main__":
    main()
