"""Batches on one core against the smallest model's appetite: tokens/s of both, and their ratio.

    python benchmarks/data_batches.py [--repeats 5]

Makes token shards of the standard library (bytes) in a temporary folder, then times order and batches alone, and the
forward and backward pass alone of a transformer of about 10,000 parameters on the same shapes (no optimizer: that is
the fastest that it could ever eat). Rounds take turns; each number is the best of its rounds.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from reducible.data.batches import Batches  # noqa: E402
from reducible.data.packing import PackedSequences  # noqa: E402
from reducible.data.shards import tokenise_files  # noqa: E402
from reducible.data.sources import Source, groups, listing  # noqa: E402
from reducible.data.tokenizer import byte_tokenizer  # noqa: E402
from reducible.models.families.transformer import Transformer, TransformerConfig  # noqa: E402

SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    source = Source("builtin:stdlib")
    with tempfile.TemporaryDirectory() as place:
        folders = []
        for number, group in enumerate(groups(listing(source))):
            folders.append(Path(place) / str(number))
            tokenise_files(group, source, tokenizer, folders[-1])

        def packed(sequence: int, mask: bool) -> PackedSequences:
            return PackedSequences(folders, "train", sequence, tokenizer.identity, tokenizer.separator, mask)

        model = Transformer(TransformerConfig(tokenizer.vocabulary, width=16, depth=2, heads=1))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"model: {parameters:,} parameters, forward and backward only\n")
        print(f"{'micro-batch':>14} {'batches M tok/s':>16} {'masked M tok/s':>15} {'model M tok/s':>14} {'ratio':>7}")
        for sequence, rows in ((128, 4), (128, 32), (256, 16), (1024, 8)):
            runs = [
                feeding(packed(sequence, False), rows),
                feeding(packed(sequence, True), rows),
                eating(model, packed(sequence, False), rows),
            ]
            plain, masked, model_speed = best_in_turns(runs, sequence * rows, options.repeats)
            print(
                f"{rows:>5} x {sequence:<6} {plain / 1e6:16.1f} {masked / 1e6:15.1f} {model_speed / 1e6:14.3f} "
                f"{plain / model_speed:6.0f}x"
            )


def feeding(examples: PackedSequences, rows: int) -> Callable[[], None]:
    """One step of one micro-batch, as the train step asks for it: order, rows, count of targets."""
    batches = Batches(examples, rows * examples.sequence, rows, seed=0)
    steps = itertools.count()

    def step() -> None:
        for indices in batches.micro_batches(next(steps)):
            batches.units(batches.fetch(indices))

    return step


def eating(model: Transformer, examples: PackedSequences, rows: int) -> Callable[[], None]:
    batches = Batches(examples, rows * examples.sequence, rows, seed=0)
    batch = {name: torch.from_numpy(array) for name, array in batches.fetch(batches.micro_batches(0)[0]).items()}

    def step() -> None:
        model.zero_grad()
        model(batch).nats.backward()

    return step


def best_in_turns(runs: list[Callable[[], None]], tokens: int, repeats: int) -> list[float]:
    """Tokens per CPU second of each, the best of `repeats` rounds that take turns."""
    best = [0.0] * len(runs)
    for _ in range(repeats):
        for number, run in enumerate(runs):
            run()
            count, start, end = 0, time.process_time(), 0.0
            while end - start < SECONDS:
                for _ in range(10):
                    run()
                count += 10
                end = time.process_time()
            best[number] = max(best[number], count * tokens / (end - start))
    return best


if __name__ == "__main__":
    main()
