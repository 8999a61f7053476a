"""Training tokens/s against our model in a bare loop, a nanoGPT-style script and Hugging Face Trainer, on one core.

    python benchmarks/train_peers.py [--sizes 1e6 1e7] [--precision fp32] [--turns 7] [--hugging-face PYTHON]
    python benchmarks/train_peers.py --sizes 5e3 2e4 --rows 4 --sequence 128 --steps 200 --only reducible "bare loop"

All have about N parameters, depth, width, sequence and batch alike, and fp32 or bf16 alike. They train in turns in one
run; a figure is the median over turns, a ratio the median of ratios within turns. PYTHON is the interpreter of an
environment with transformers and accelerate; without one Hugging Face Trainer is left out, and that is said.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from train_corpus import flat_tokens, make_dataset, median
from train_turns import Contestant

from reducible.models.cost.ledger import Lengths
from reducible.models.cost.size_ladder import sized
from reducible.models.families.registry import family

HERE = Path(__file__).resolve().parent
BARE = "bare loop"


def shape_of(size: float, arguments: argparse.Namespace, data: Path, core: int) -> dict:
    kind = family("transformer")
    config = sized(kind, kind.config(vocabulary=257), size, Lengths.fixed(arguments.sequence))
    cost = kind.cost(config, Lengths.fixed(arguments.sequence))
    return {
        "model": {name: getattr(config, name) for name in config.__dataclass_fields__},
        "vocabulary": 257,
        "width": config.width,
        "depth": config.depth,
        "heads": config.heads,
        "hidden": config.hidden,
        "sequence": arguments.sequence,
        "rows": arguments.rows,
        "precision": arguments.precision,
        "data": str(data),
        "tokens": str(flat_tokens(data)),
        "turns": arguments.turns + 1,  # the first warms up
        "steps": arguments.steps,
        "core": core,
        "parameters": cost.parameters,
        "flops": cost.training_flops_per_unit,
    }


def contestants(arguments: argparse.Namespace) -> dict[str, list[str]]:
    mine = sys.executable
    all_ = {
        "reducible": [mine, "train_ours.py", "alone"],
        "reducible, Ray Train + MLflow": [mine, "train_ours.py", "ray"],
        BARE: [mine, "train_bare.py"],
        "nanoGPT-style": [mine, "train_nanogpt.py"],
    }
    if reason := missing(arguments.hugging_face):
        print(f"Hugging Face Trainer is left out: {reason}")
    else:
        all_["Hugging Face Trainer"] = [arguments.hugging_face, "train_peer_hf.py"]
    return {name: command for name, command in all_.items() if not arguments.only or name in arguments.only}


def missing(python: str) -> str | None:
    try:
        done = subprocess.run([python, "-c", "import transformers, accelerate"], capture_output=True, text=True)
    except OSError as error:
        return f"{python}: {error.strerror}"
    return f"{python}: {done.stderr.strip().splitlines()[-1]}" if done.returncode else None


def compare(size: float, arguments: argparse.Namespace, data: Path) -> None:
    core = sorted(os.sched_getaffinity(0))[-1]
    environment = os.environ | {
        "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as scratch:
        shape = shape_of(size, arguments, data, core)
        playing = []
        for number, (name, command) in enumerate(contestants(arguments).items()):
            folder = Path(scratch) / str(number)
            given = json.dumps(shape | {"folder": str(folder)})
            playing.append(
                Contestant(name, folder, [command[0], str(HERE / command[1]), *command[2:], given], environment)
            )
        try:
            for one in playing:
                one.play(0)
            for turn in range(1, arguments.turns + 1):
                for one in playing if turn % 2 else reversed(playing):
                    one.play(turn)
        finally:
            for one in playing:
                one.end()
        report(shape, playing)


def report(shape: dict, playing: list[Contestant]) -> None:
    tokens = shape["rows"] * shape["sequence"] * shape["steps"]
    print(
        f"\n{shape['parameters']:,} parameters: width {shape['width']}, depth {shape['depth']}; {shape['rows']} x "
        f"{shape['sequence']} tokens a step, {shape['precision']}, one core, {len(playing[0].took) - 1} turns of "
        f"{shape['steps']} steps"
    )
    took = {one.name: [wall for wall, _ in one.took[1:]] for one in playing}
    busy = {one.name: [cpu for _, cpu in one.took[1:]] for one in playing}
    print(f"{'':32}{'tokens/s':>10}{'of bare':>9}{'by CPU time':>13}{'GFLOP/s':>9}")
    for name in took:
        speed = median([tokens / wall for wall in took[name]])
        ratios = [
            f"{median([b / o for b, o in zip(times[BARE], times[name], strict=True)]):.3f}" if BARE in times else "-"
            for times in (took, busy)
        ]
        gflops = speed * shape["flops"] / 1e9
        print(f"{name:32}{speed:>10,.0f}{ratios[0]:>9}{ratios[1]:>13}{gflops:>9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8, help="sequences per step")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="of each turn")
    parser.add_argument("--hugging-face", default="python-with-transformers", metavar="PYTHON")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "reducible-benchmark")
    arguments = parser.parse_args()
    data = make_dataset(arguments.cache)
    for size in arguments.sizes:
        compare(size, arguments, data)


if __name__ == "__main__":
    main()
