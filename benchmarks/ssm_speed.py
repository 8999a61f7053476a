"""Training steps per second of the deep state-space model against Pyro's deep Markov model at the same sizes.

    PYTHONPATH=. python benchmarks/ssm_speed.py JSB_Chorales.json --pyro PEER/bin/python

PEER: an environment with pyro-ppl 1.9.2 and the same torch. Latent 100, transition 200, emission 100, encoder 600; the
same minibatches of 20 chorales, padded to their longest; forward, backward, clipping and Adam; one thread each, in
turns on one core. `ours` has an encoder of the peer's kind (Elman), `ours, LSTM` the one that we take by default.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from train_turns import Contestant, Turns

from reducible.data.series_files import read_rolls

SIZES = {"keys": 88, "latent": 100, "transition": 200, "emission": 100, "recurrence": 600}
ROWS = 20
CELLS = {"ours": "elman", "ours, LSTM": "lstm"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rolls", type=Path)
    parser.add_argument("--pyro", required=True, help="python of an environment that has pyro-ppl")
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--core", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        batches = write_batches(arguments.rolls, folder / "batches")
        contestants = [
            start(who, folder / f"contestant-{number}", batches, arguments)
            for number, who in enumerate(("pyro", *CELLS))
        ]
        try:
            for turn in range(arguments.turns + 1):  # the first warms up
                for contestant in contestants:
                    contestant.play(turn)
        finally:
            for contestant in contestants:
                contestant.end()
        say(contestants, arguments.steps)


def start(who: str, folder: Path, batches: Path, arguments: argparse.Namespace) -> Contestant:
    told = {
        "sizes": SIZES,
        "batches": str(batches),
        "folder": str(folder),
        "steps": arguments.steps,
        "core": arguments.core,
    }
    here = Path(__file__).parent
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if who == "pyro":
        command = [arguments.pyro, str(here / "ssm_peer_pyro.py"), json.dumps(told)]
        environment.pop("PYTHONPATH", None)
    else:
        command = [sys.executable, str(Path(__file__)), "--as", json.dumps(told | {"cell": CELLS[who]})]
        environment["PYTHONPATH"] = str(here.parent)
    return Contestant(who, folder, command, environment)


def write_batches(rolls: Path, folder: Path) -> Path:
    """The first minibatches of a shuffled epoch, as both contestants read them."""
    folder.mkdir()
    pieces = [one.values for one in read_rolls(rolls) if one.split == "train"]
    order = np.random.default_rng(0).permutation(len(pieces))
    for number in range(len(order) // ROWS):
        chosen = [pieces[index] for index in order[number * ROWS : (number + 1) * ROWS]]
        lengths = np.array([len(piece) for piece in chosen])
        values = np.zeros((ROWS, lengths.max(), SIZES["keys"]), np.float32)
        for row, piece in enumerate(chosen):
            values[row, : len(piece)] = piece
        np.savez(folder / f"{number:03d}.npz", values=values, steps=np.arange(lengths.max()) < lengths[:, None])
    return folder


def ours(told: dict[str, Any]) -> None:
    import torch

    from reducible.models.families.ssm import SsmConfig, StateSpace

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = told["sizes"]
    model = StateSpace(
        SsmConfig(
            channels=sizes["keys"],
            width=sizes["recurrence"],
            latent=sizes["latent"],
            transition="gated",
            transition_width=sizes["transition"],
            emission="bernoulli",
            emission_width=sizes["emission"],
            posterior="structured",
            cell=told["cell"],
            kl_start=0.2,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.96, 0.999), weight_decay=0.0)
    batches = [dict(np.load(file)) for file in sorted(Path(told["batches"]).glob("*.npz"))]
    turns = Turns(Path(told["folder"]), told["steps"], told["core"])
    step = 0
    while True:
        turns.at(step)
        batch = {name: torch.from_numpy(array) for name, array in batches[step % len(batches)].items()}
        batch["observed"] = batch["steps"][..., None].expand(batch["values"].shape)
        model.at_step(0, 1000)
        loss = model(batch)
        (loss.nats / loss.units).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.isfinite(loss.nats)
        if step < 3:
            print(step, (loss.nats / loss.units).item(), sum(p.numel() for p in model.parameters()), flush=True)
        step += 1


def say(contestants: list[Contestant], steps: int) -> None:
    processor = subprocess.run(["lscpu"], capture_output=True, text=True).stdout
    print(next((line.split(":")[1].strip() for line in processor.splitlines() if line.startswith("Model name")), "?"))
    print("| | steps/s | by CPU time | of Pyro, median of the turns | by CPU time |\n|---|---:|---:|---:|---:|")
    peer = contestants[0].took[1:]
    for contestant in contestants:
        took = contestant.took[1:]
        wall, cpu = (statistics.median(turn[part] for turn in took) for part in (0, 1))
        ratios = [
            statistics.median(theirs[part] / mine[part] for theirs, mine in zip(peer, took, strict=True))
            for part in (0, 1)
        ]
        print(f"| {contestant.name} | {steps / wall:.2f} | {steps / cpu:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    for contestant in contestants:
        print(f"{contestant.name}:", " / ".join(contestant.log.read_text().splitlines()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        ours(json.loads(sys.argv[2]))
    else:
        main()
