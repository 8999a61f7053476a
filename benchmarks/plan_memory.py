"""The memory that `reducible plan` predicts beside what a step takes, for every family and way to checkpoint.

    PYTHONPATH=. python benchmarks/plan_memory.py

Each case is a process of its own that runs two micro-batches and the update, in fp32 on one thread. Measured is the
most anonymous memory over what the process had before the model was there (VmHWM, which the kernel lets a process
reset, without pages of files), with an allocator that gives back what is freed. Scratch inside kernels counts; the
prediction knows only that of the LSTM. Pages count from when they are handed out (MALLOC_PERTURB_), as in a process
that keeps what it has used.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    title: str
    family: str
    model: dict[str, Any]
    rows: int
    length: int


WORDS = {"vocabulary": 4096}
PAIRS = {"source_vocabulary": 4096, "vocabulary": 4096, "shared": False}
CASES = (
    Case("transformer", "transformer", WORDS | {"width": 256, "depth": 6, "heads": 4}, 8, 256),
    Case("transformer, dropout", "transformer", WORDS | {"width": 256, "depth": 6, "heads": 4, "dropout": 0.1}, 8, 256),
    Case("recurrent, LSTM", "recurrent", WORDS | {"width": 256, "depth": 2}, 16, 128),
    Case("recurrent, GRU", "recurrent", WORDS | {"width": 256, "depth": 2, "cell": "gru"}, 64, 64),
    Case("recurrent, Elman", "recurrent", WORDS | {"width": 256, "depth": 2, "cell": "elman"}, 64, 64),
    Case("recurrent, pieces of 32", "recurrent", WORDS | {"width": 256, "depth": 2, "truncation": 32}, 16, 128),
    Case("encoder-decoder", "encoder-decoder", PAIRS | {"width": 256, "depth": 4, "heads": 4}, 32, 48),
    Case("seq2seq, Luong", "seq2seq", PAIRS | {"width": 256}, 64, 48),
    Case("seq2seq, Bahdanau", "seq2seq", PAIRS | {"width": 256, "attention": "bahdanau"}, 128, 24),
    Case("vae", "vae", WORDS | {"width": 256, "latent": 16}, 64, 32),
    Case("ssm", "ssm", {"channels": 88, "width": 256}, 32, 128),
    Case("linear-gaussian", "linear-gaussian", {"channels": 8, "width": 16}, 256, 1024),
)
OURS = {
    "MALLOC_MMAP_THRESHOLD_": "16384",
    "MALLOC_PERTURB_": "1",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
}


def main() -> None:
    from reducible.models.layers.activation_checkpointing import MODES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose title has this in it")
    parser.add_argument("--case", nargs=3, help="title, method and mode: measure here (used by the program itself)")
    arguments = parser.parse_args()
    if arguments.case:
        title, method, mode = arguments.case
        print(json.dumps(measured(next(case for case in CASES if case.title == title), method, mode)))
        return
    ways = [("full", mode) for mode in MODES] + [("lora", "none"), ("qlora", "none")]
    print("predicted / measured MB, and their ratio\n")
    print(f"| | {' | '.join(mode if method == 'full' else method for method, mode in ways)} |")
    print("|---" * (1 + len(ways)) + "|")
    for case in CASES:
        if arguments.only in case.title:
            print(f"| {case.title} | {' | '.join(compared(case, method, mode) for method, mode in ways)} |", flush=True)


def compared(case: Case, method: str, mode: str) -> str:
    if case.family == "linear-gaussian" and method == "qlora":
        return "-"  # its matrices are too small to quantise
    command = [sys.executable, __file__, "--case", case.title, method, mode]
    done = subprocess.run(command, env=os.environ | OURS, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    ratio = found["predicted"] / found["measured"]
    return f"{found['predicted'] / 1e6:.0f} / {found['measured'] / 1e6:.0f}, {ratio:.2f}"


def measured(case: Case, method: str, mode: str) -> dict[str, float]:
    """Bytes predicted and measured; a small step before warms up what libraries take once."""
    import torch

    from reducible.models.families.registry import FAMILIES
    from reducible.models.finetune.lora import Adapter, add_adapter
    from reducible.models.layers.activation_checkpointing import set_checkpointing
    from reducible.models.memory.step_plan import Method, step_plan
    from reducible.models.quantise.quantised_base import Quantisation, quantise_model
    from reducible.tasks.train.optimizers.adamw import AdamW, AdamWSpec

    kind = FAMILIES[case.family]

    def step(config: Any, rows: int) -> None:
        model, batch = kind.build(config), kind.batch.full_batch(config, rows, case.length)
        if method == "qlora":
            quantise_model(model, Quantisation())
        if method != "full":
            add_adapter(model, Adapter())
        model.train()
        set_checkpointing(model, mode)
        release()
        Path("/proc/self/clear_refs").write_text("5")  # what building took is not the step's
        optimizer = AdamW(model, model.parameter_groups(), AdamWSpec())
        for _ in range(2):
            for piece, _ in model.pieces(batch):
                loss = model(piece)
                loss.nats.backward()
                del loss
        gradients = optimizer.gradients()
        optimizer.step(gradients, optimizer.norm(gradients), 1e-3, torch.zeros(()))

    config = kind.config(**case.model)
    step(config, 2)
    release()
    before = status("RssAnon")
    files = status("VmRSS") - before
    step(config, case.rows)
    peak = status("VmHWM") - before - max(files, status("VmRSS") - status("RssAnon"))
    plan = step_plan(
        *(case.family, config, Method(method), mode),  # type: ignore[arg-type]
        micro_batch=case.rows,
        sequence=case.length,
        micro_batches=2,
    )
    return {"predicted": plan.peak, "measured": peak}


def release() -> None:
    import ctypes
    import gc

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


if __name__ == "__main__":
    main()
