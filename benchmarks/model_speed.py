"""Forward and backward of the transformer's ladder on one core, beside a bare matrix product on the same core.

python benchmarks/model_speed.py               # bytes, context 128, 4 and 16 sequences
"""

import argparse
import time
from collections.abc import Callable

import torch

from reducible.models.cost.ledger import Lengths
from reducible.models.families.registry import family


def best_seconds(run: Callable[[], object], repeats: int = 7, least: float = 0.15) -> float:
    """Seconds of one call, best of some rounds; CPU time of this thread, so that waiting for a core is not in it."""
    run()
    began = time.thread_time()
    run()
    calls = max(1, round(least / max(time.thread_time() - began, 1e-6)))
    rounds = []
    for _ in range(repeats):
        began = time.thread_time()
        for _ in range(calls):
            run()
        rounds.append((time.thread_time() - began) / calls)
    return min(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="10,16,24,32,48,64,96,128")
    parser.add_argument("--rows", default="4,16")
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=257)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    a = torch.randn(1024, 1024)
    bare = 2 * 1024**3 / best_seconds(lambda: a @ a) / 1e9
    print(f"bare product of 1024 x 1024 matrices: {bare:.0f} GFLOP/s\n")
    print(
        "| width | depth | parameters | tokens | ms | tokens/s | GFLOP/s | of bare |\n|---|---|---|---|---|---|---|---|"
    )
    transformer = family("transformer")
    for width in map(int, arguments.widths.split(",")):
        config = transformer.config(vocabulary=arguments.vocabulary).scaled(width)
        model, cost = transformer.build(config), transformer.cost(config, Lengths.fixed(arguments.sequence))
        for rows in map(int, arguments.rows.split(",")):
            shape = (rows, arguments.sequence)
            batch = {name: torch.randint(arguments.vocabulary, shape) for name in ("inputs", "targets")}

            def step(model: torch.nn.Module = model, batch: dict[str, torch.Tensor] = batch) -> None:
                model.zero_grad()
                model(batch).nats.backward()

            seconds, tokens = best_seconds(step), rows * arguments.sequence
            speed = cost.training_flops_per_unit * tokens / seconds / 1e9
            print(
                f"| {width} | {config.depth} | {cost.parameters:,} | {tokens} | {seconds * 1e3:.1f} "
                f"| {tokens / seconds:,.0f} | {speed:.1f} | {speed / bare:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
