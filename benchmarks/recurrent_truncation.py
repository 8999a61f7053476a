"""Truncated back-propagation and checkpointing in time: memory, time and bias of the gradient.

    PYTHONPATH=. python benchmarks/recurrent_truncation.py

A language model of two layers x 128 on bytes of the standard library, 16 sequences of 1,024, first trained for some
steps so that its gradient is one of practice. Memory: the most bytes alive at once, by counting
(models/memory/counted_bytes.py); scratch inside a kernel is not in it. Seconds: processor time of forward and backward,
one thread, median. Bias: |g_piece - g| / |g| over all parameters, and the cosine of the two.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from torch import Tensor

from reducible.data.python_files import paths
from reducible.models.families.recurrent import Recurrent, RecurrentConfig
from reducible.models.memory.counted_bytes import peak_bytes

ROWS, LENGTH, WIDTH = 16, 1024, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default="lstm,gru,elman")
    parser.add_argument("--steps", type=int, default=60, help="of training before measuring")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ids = np.frombuffer(b"".join(path.read_bytes() for _, path in paths("stdlib")), np.uint8).astype(np.int64)
    print(f"{ROWS} sequences of {LENGTH:,}, 2 layers x {WIDTH}, torch {torch.__version__}\n")
    for cell in arguments.cells.split(","):
        model = warmed_up(cell, ids, arguments.steps)
        batch = batch_of(ids, np.random.default_rng(1))
        whole = gradient(model(None), batch)
        print(f"{cell}:\n")
        print("| piece | memory, MiB | seconds | bias | cosine |\n|---|---:|---:|---:|---:|")
        for piece in (16, 64, 256, LENGTH):
            row(f"{piece}", model(piece), batch, whole, arguments.repeats)
        rebuilding = model(None)
        rebuilding.rebuilds = True
        row("whole, `checkpointing: sqrt-time`", rebuilding, batch, whole, arguments.repeats)
        print()


def batch_of(ids: np.ndarray, random: np.random.Generator) -> dict[str, Tensor]:
    starts = random.integers(0, len(ids) - LENGTH - 1, ROWS)
    rows = torch.from_numpy(ids[starts[:, None] + np.arange(LENGTH + 1)])
    return {"inputs": rows[:, :-1].contiguous(), "targets": rows[:, 1:].contiguous()}


def warmed_up(cell: str, ids: np.ndarray, steps: int):  # noqa: ANN201
    """A function from the truncation to a model with the weights after a short training."""
    torch.manual_seed(0)
    model = Recurrent(RecurrentConfig(256, WIDTH, 2, cell, truncation=256))
    groups = [{"params": list(g.parameters), "lr": 1e-2 * g.rate} for g in model.parameter_groups()]
    optimizer, random = torch.optim.AdamW(groups, betas=(0.9, 0.95)), np.random.default_rng(0)
    for _ in range(steps):
        for piece, _ in model.pieces(batch_of(ids, random)):
            loss = model(piece)
            (loss.nats / loss.units).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    weights = model.state_dict()

    def at(truncation: int | None) -> Recurrent:
        copy = Recurrent(RecurrentConfig(256, WIDTH, 2, cell, truncation=truncation))
        copy.load_state_dict(weights)
        return copy

    return at


def backward(model: Recurrent, batch: dict[str, Tensor]) -> None:
    for piece, _ in model.pieces(batch):
        model(piece).nats.backward()


def gradient(model: Recurrent, batch: dict[str, Tensor]) -> Tensor:
    model.zero_grad()
    backward(model, batch)
    return torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()])


def row(name: str, model: Recurrent, batch: dict[str, Tensor], whole: Tensor, repeats: int) -> None:
    found = gradient(model, batch)
    bias = ((found - whole).norm() / whole.norm()).item()
    cosine = torch.nn.functional.cosine_similarity(found, whole, dim=0).item()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        backward(model, batch)
        seconds.append(time.process_time() - began)
    memory = peak_bytes(lambda: backward(model, batch)) / 2**20
    print(f"| {name} | {memory:.1f} | {statistics.median(seconds):.2f} | {bias:.4f} | {cosine:.4f} |", flush=True)


if __name__ == "__main__":
    main()
