"""Training tokens/s of seq2seq against JoeyNMT 2.3.0 at the same sizes, in one process, taking turns.

    PYTHONPATH=. PEER/bin/python benchmarks/seq2seq_speed.py

PEER: an environment with joeynmt==2.3.0 and its requirements, and with ours. Both train on the same batches: Multi30k's
number of tokens (14 on average, bucketed by length), a shared vocabulary of 5,000, embeddings and states of 256, one
bidirectional layer of encoder (128 each way), dropout 0.3, tied embeddings, clipping at 1, fp32. JoeyNMT's recurrent
decoder feeds its attention back, in a loop over the target. Ours is timed in both forms: luong, after one fused LSTM,
and bahdanau, which feeds back as well. JoeyNMT's step is its model's, batch's and optimizer's, as its TrainManager
calls them; ours is the whole of `Step` (tasks/train/step.py). Times are of one thread's CPU, so waiting for a core is
not in them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from reducible.data.buckets import Buckets
from reducible.models.cost.ledger import Lengths
from reducible.tasks.train.examples import TrainingData
from reducible.tasks.train.loop import Training
from reducible.tasks.train.train_spec import Execution, TrainSpec
from reducible.tasks.workflow.record import Record

SPECIALS = 4
"""JoeyNMT's unknown, padding, begin and end come first; we leave their ids unused but for one as separator."""
BEGIN, END, PADDING = 2, 3, 1


class MadeUp:
    """Random pairs with lengths as in Multi30k."""

    sequence, split, fingerprint = 64, "train", "made-up"

    def __init__(self, count: int, vocabulary: int) -> None:
        random = np.random.default_rng(0)
        spread = np.clip(random.normal(14, 4.5, (2, count)), 4, 40).astype(int)
        # A target is about as long as its source.
        self.source_lengths, self.lengths = spread[0], np.clip(spread[0] + (spread[1] - 14) // 3, 4, 44)
        self.sizes = np.maximum(self.source_lengths, self.lengths)
        self.tokens = random.integers(SPECIALS, vocabulary, (count, 2, 64))

    def __len__(self) -> int:
        return len(self.lengths)

    def units(self, batch: dict[str, np.ndarray]) -> int:
        return int(np.count_nonzero(batch["targets"] >= 0))

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        sources, targets = self.source_lengths[indices], self.lengths[indices]
        source_BS = self.tokens[indices, 0, : sources.max()].copy()
        tokens_BT = self.tokens[indices, 1, : targets.max()].copy()
        for row in range(len(indices)):
            source_BS[row, sources[row] - 1 :] = END
            tokens_BT[row, targets[row] - 1 :] = END
        real_BT = np.arange(tokens_BT.shape[1]) < targets[:, None]
        inputs_BT = np.concatenate([np.full((len(indices), 1), END), tokens_BT[:, :-1]], axis=1)
        return {
            "source": source_BS,
            "source_lengths": sources,
            "inputs": inputs_BT,
            "targets": np.where(real_BT, tokens_BT, -100),
        }


def ours(attention: str, options: argparse.Namespace, examples: Any, work: Path) -> Callable[[int], None]:
    model = {"width": options.width, "dropout": 0.3, "attention": attention, "label_smoothing": options.smoothing}
    sizes = {"source_vocabulary": options.vocabulary, "vocabulary": options.vocabulary, "shared": True}
    spec = TrainSpec.model_validate(
        {
            "family": "seq2seq",
            "model": sizes | model,
            "sequence": 64,
            "stop_step": 1_000_000,
            "batch": options.batch,
            "micro_batch": options.batch,
        }
    )
    batches = Buckets(examples, options.batch, options.batch, 0)
    data = TrainingData(batches, batches, [], None, Lengths.measured(examples.lengths, examples.source_lengths))
    training = Training(spec, Execution(), data, None, work, Record(work / "record", "x"), None)
    print(f"ours, {attention}: {training.cost.parameters:,} parameters", flush=True)
    return training.step


def joeynmt(attention: str, options: argparse.Namespace, examples: Any) -> Callable[[int], None]:
    from joeynmt.batch import Batch
    from joeynmt.builders import build_gradient_clipper, build_optimizer
    from joeynmt.model import build_model
    from joeynmt.vocabulary import Vocabulary

    names = SimpleNamespace(
        unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token=None, lang_tags=[],
        unk_id=0, pad_id=PADDING, bos_id=BEGIN, eos_id=END, sep_id=None,
    )  # fmt: skip
    vocabulary = Vocabulary([f"t{number}" for number in range(SPECIALS, options.vocabulary)], names)
    embeddings = {"embedding_dim": options.width, "dropout": 0.3}
    encoder = {"type": "recurrent", "rnn_type": "lstm", "hidden_size": options.width // 2, "bidirectional": True}
    decoder = {"type": "recurrent", "rnn_type": "lstm", "hidden_size": options.width, "attention": attention}
    layers = {"num_layers": 1, "dropout": 0.3, "embeddings": embeddings}
    model = build_model(
        {
            "encoder": encoder | layers,
            "decoder": decoder | layers | {"init_hidden": "bridge", "input_feeding": True, "hidden_dropout": 0.3},
            "tied_embeddings": True,
            "tied_softmax": True,
        },
        vocabulary,
        vocabulary,
    )
    model.loss_function = ("crossentropy", options.smoothing)
    training = {"optimizer": "adam", "learning_rate": 1e-3, "clip_grad_norm": 1.0, "clip_grad_val": None}
    optimizer, clip = build_optimizer(training, model.parameters()), build_gradient_clipper(training)
    print(f"JoeyNMT, {attention}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    batches = Buckets(examples, options.batch, options.batch, 0)

    def step(number: int) -> None:
        for indices in batches.micro_batches(number):
            arrays = batches.fetch(indices)
            source = torch.from_numpy(arrays["source"])
            lengths = torch.from_numpy(arrays["source_lengths"])
            source[torch.arange(source.shape[1]) >= lengths[:, None]] = PADDING
            targets = torch.from_numpy(arrays["targets"])
            targets = torch.cat([torch.full((len(targets), 1), BEGIN), targets.where(targets >= 0, PADDING)], dim=1)
            batch = Batch(
                source, lengths, None, targets, None, torch.arange(len(source)), torch.device("cpu"), PADDING, END
            )
            # TrainManager._train_step and the update after it.
            model.train()
            batch.sort_by_src_length()
            loss, _, _, correct = model(return_type="loss", **vars(batch))
            normed = batch.normalize(loss, normalization="tokens")
            normed.backward()
            normed.item(), correct.item()
        clip(parameters=model.parameters())
        optimizer.step()
        model.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=1024, help="target tokens a step")
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="a turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    examples = MadeUp(20_000, options.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        contestants = {
            "ours, luong after one fused LSTM": ours("luong", options, examples, Path(folder) / "luong"),
            "ours, bahdanau with input feeding": ours("bahdanau", options, examples, Path(folder) / "bahdanau"),
            "JoeyNMT, luong with input feeding": joeynmt("luong", options, examples),
            "JoeyNMT, bahdanau with input feeding": joeynmt("bahdanau", options, examples),
        }
        batches = Buckets(examples, options.batch, options.batch, 0)  # type: ignore[arg-type]
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(-1, options.turns):  # the first warms up
            steps = range((turn + 1) * options.steps, (turn + 2) * options.steps)
            units = sum(batches.units(batches.fetch(i)) for step in steps for i in batches.micro_batches(step))
            for name, run in contestants.items():
                began = time.thread_time()
                for step in steps:
                    run(step)
                if turn >= 0:
                    speeds[name].append(units / (time.thread_time() - began))
    peer = speeds["JoeyNMT, luong with input feeding"]
    print("\n| | tokens/s of a core | of JoeyNMT, luong |\n|---|---:|---:|")
    for name, measured in speeds.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(measured, peer, strict=True))
        print(f"| {name} | {statistics.median(measured):,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
