"""Multi30k en-de, test 2016: BLEU of transformer-tiny against time on one core, beside the published 41.02.

    PYTHONPATH=. python benchmarks/translation_transformer.py train --updates 2000 --work WORK
    PYTHONPATH=. python benchmarks/translation_transformer.py bleu --work WORK --average 1 5

The published recipe: 4 + 4 layers, width 128, feed-forward 256, 4 heads, dropout .3, joint BPE of 10,000 merges, shared
embeddings, 8,000 updates of 4,096 tokens, average of the last 10 checkpoints, beam 5, tokenised lowercase BLEU.
`train` can be killed and goes on; `bleu` scores the test split at every checkpoint that is there.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from translation_corpus import SEPARATOR, Corpus, read

from reducible.models.families.encoder_decoder import EncoderDecoder, EncoderDecoderConfig, encoder_decoder_cost
from reducible.models.families.registry import family
from reducible.models.generate.beam_search import beam_search
from reducible.tasks.train.checkpoints import complete
from reducible.tasks.train.loop import train
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record, read_rows

DATASETS = Path(__file__).resolve().parents[2] / "shared" / "datasets"


def specification(options: argparse.Namespace, corpus: Corpus) -> TrainSpec:
    model = {
        "source_vocabulary": len(corpus.vocabulary),
        "vocabulary": len(corpus.vocabulary),
        "shared": True,
        "width": 128,
        "depth": 4,
        "heads": 4,
        "feed_forward": 256,
        "activation": "gelu",
        "dropout": options.dropout,
        "label_smoothing": options.smoothing,
    }
    return TrainSpec.model_validate(
        {
            "family": "encoder-decoder",
            "model": model,
            "sequence": corpus.splits["train"].sequence,
            "stop_step": options.updates,
            "batch": options.batch,
            "micro_batch": max(1, 2 * options.batch // corpus.splits["train"].sequence),
            "optimizer": {"learning_rate": options.rate, "weight_decay": options.decay},
            "schedule": {
                "kind": "wsd",
                "warmup_steps": min(400, options.updates // 10),
                "cooldown_steps": options.updates // 2,
            },
            "validation": {"every": max(1, options.updates // 20), "examples": 1014},
        }
    )


def run_training(options: argparse.Namespace, corpus: Corpus) -> None:
    spec = specification(options, corpus)
    cost = encoder_decoder_cost(
        EncoderDecoderConfig(**spec.model), corpus.training(spec.batch, spec.micro_batch, 0).lengths
    )
    print(f"{cost.parameters:,} parameters, {cost.training_flops_per_unit / 1e6:.2f} MFLOP a target token", flush=True)
    result = train(
        spec,
        Execution(checkpoint_every=max(1, options.updates // 20), keep_last=20, log_every=20),
        data=corpus.training(spec.batch, spec.micro_batch, spec.seed),
        start=None,
        work=options.work,
        record=Record(options.work / "record", f"{time.time_ns()}"),
    )
    core = time.process_time()
    print(f"{json.dumps(result.__dict__)}\n{core:.0f} s of one core since this process began", flush=True)


def averaged(paths: list[Path]) -> EncoderDecoder:
    """The mean of the weights of several checkpoints."""
    content = json.loads((paths[-1] / "progress.json").read_text())["model"]
    kind = family(content["family"])
    model = kind.build(kind.config(**content["config"]))
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in state.items()}
    for path in paths:
        dcp.load(state, checkpoint_id=path, no_dist=True)
        for name, tensor in state.items():
            total[name] += tensor
    model.load_state_dict({name.removeprefix("model."): tensor / len(paths) for name, tensor in total.items()})
    return model.eval()


def translated(model: EncoderDecoder, corpus: Corpus, beam: int, alpha: float) -> list[str]:
    """The test split, sentences of like length together."""
    examples = corpus.splits["test"]
    order = np.argsort(examples.source_lengths, kind="stable")
    texts = [""] * len(examples)
    for indices in np.array_split(order, -(-len(order) // 50)):
        batch = {name: torch.as_tensor(array) for name, array in examples.batch(indices).items()}
        longest = int(batch["source_lengths"].max()) * 2 + 10
        found = beam_search(model, batch, SEPARATOR, longest, beam, alpha)
        for index, hypotheses in zip(indices, found, strict=True):
            texts[index] = corpus.text(hypotheses[0].tokens)
    return texts


def score(options: argparse.Namespace, corpus: Corpus) -> None:
    from sacrebleu.metrics import BLEU

    rows = {row["step"]: row["metrics"] for row in read_rows(options.work / "record")}
    for count in options.average:
        checkpoints = complete(options.work / "checkpoints")
        ends = range(len(checkpoints)) if not options.last else [len(checkpoints) - 1]
        for end in ends:
            if end + 1 < count or (end + 1) % options.every and end + 1 != len(checkpoints):
                continue
            began = time.perf_counter()
            model = averaged(checkpoints[end + 1 - count : end + 1])
            texts = translated(model, corpus, options.beam, options.alpha)
            bleu = BLEU(tokenize="none")
            value = bleu.corpus_score(texts, [corpus.references]).score
            progress: dict[str, Any] = json.loads((checkpoints[end] / "progress.json").read_text())["progress"]
            print(
                f"update {progress['step']:6,}  {progress['units'] / 1e6:6.2f}M tokens  {progress['stepping']:6.0f} s"
                f"  val {rows.get(progress['step'], {}).get('val/loss', float('nan')):.4f}  average of {count}:"
                f"  BLEU {value:.2f}  ({time.perf_counter() - began:.0f} s; {bleu.get_signature()})",
                flush=True,
            )
            (options.work / "test.de").write_text("\n".join(texts) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "bleu"])
    parser.add_argument("--datasets", type=Path, default=DATASETS)
    parser.add_argument("--source", default="en")
    parser.add_argument("--target", default="de")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=4096, help="target tokens per update")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate of hidden matrices at width 64")
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--average", type=int, nargs="+", default=[1])
    parser.add_argument("--every", type=int, default=1, help="score every so many checkpoints")
    parser.add_argument("--last", action="store_true", help="score the last checkpoint only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    corpus = read(options.datasets / "multi30k", options.source, options.target)
    run_training(options, corpus) if options.what == "train" else score(options, corpus)


if __name__ == "__main__":
    main()
