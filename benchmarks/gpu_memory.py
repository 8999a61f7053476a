"""The memory that `reducible plan` predicts for a GPU beside what the steps take there, for every family.

    PYTHONPATH=. python benchmarks/gpu_memory.py [--family seq2seq ...] [--precision bf16 fp32] [--json FILE] [--smoke]

Each case is a training of made-up batches: the weights, then steps of two micro-batches. Measured is the most that
torch's allocator gave out (torch.cuda.max_memory_allocated) above what it had before the model was there; libraries
have set up what they keep by a small training before. A fine-tuning is a model with adapters and the same step by hand.
On a CPU only what is predicted is shown. --smoke: tiny models, to try the program.
"""

import argparse
import gc
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Shape, device_facts, run, training, write

from reducible.models.families.registry import FAMILIES
from reducible.models.memory.step_plan import Method, prepared, step_plan
from reducible.models.memory.step_plan import Setting as Step
from reducible.tasks.train.optimizers.adamw import AdamW, AdamWSpec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Case:
    shape: Shape
    method: str = "full"
    checkpointing: str = "none"

    @property
    def title(self) -> str:
        words = [self.shape.family, self.shape.precision]
        words += [word for word in (self.method, self.checkpointing) if word not in ("full", "none")]
        return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--precision", nargs="*", default=["bf16", "fp32"], choices=["bf16", "fp16", "fp32"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    content: dict[str, Any] = {**device_facts(), "rows": []}
    print(f"{content['device']}, torch {torch.__version__}")
    print(f"{'case':36} {'predicted MB':>13} {'measured MB':>12} {'ratio':>6}")
    all_ = cases(arguments)
    # A rehearsal keeps one core busy, for some families a minute.
    workers = min(len(all_), 8, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        plans = [pool.submit(predicted, case) for case in all_]
        for case, plan in zip(all_, plans, strict=True):
            try:
                row = {"predicted": plan.result()} | (measured(case) if torch.cuda.is_available() else {})
                if "measured" in row:
                    row["ratio"] = row["predicted"] / row["measured"]
            except Exception as error:  # the next case may run
                row = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
            content["rows"].append({"case": case.title, **row})
            write(arguments.json, content)
            print(f"{case.title:36} {said(row)}", flush=True)
    failed = [row["case"] for row in content["rows"] if "failed" in row]
    if failed:
        sys.exit(f"gpu_memory: failed: {', '.join(failed)}")


def cases(arguments: argparse.Namespace) -> list[Case]:
    width, length, rows = (16, 8, 4) if arguments.smoke else (512, 128, 64)
    found = [
        Case(replace(Shape.of_family(family, width, length, rows, precision), micro_batches=2))
        for precision in arguments.precision
        for family in arguments.family
    ]
    first = arguments.precision[0]
    more = [case for case in found if case.shape.precision == first]
    found += [replace(case, checkpointing="selective") for case in more if case.shape.family != "linear-gaussian"]
    adapted = [case for case in more if case.shape.family in ("transformer", "recurrent")]
    return found + [replace(case, method=method) for method in ("lora", "qlora") for case in adapted]


def predicted(case: Case) -> float:
    """Bytes."""
    shape = case.shape
    return step_plan(
        *(shape.family, shape.config, Method(case.method), case.checkpointing),  # type: ignore[arg-type]
        micro_batch=shape.rows,
        sequence=shape.length,
        micro_batches=shape.micro_batches,
        precision=shape.precision,
        device="cuda",
    ).peak


def measured(case: Case) -> dict[str, Any]:
    """Bytes; a small training before sets up what libraries keep."""
    step = trained if case.method == "full" else finetuned
    step(replace(case, shape=replace(case.shape, rows=2)))
    return {"measured": most(step, case)}


def most(step: Callable[[Case], None], case: Case) -> int:
    """Bytes that the allocator gave out at once, above those from before."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(case)
    return torch.cuda.max_memory_allocated() - before


def trained(case: Case) -> None:
    with training(case.shape, checkpointing=case.checkpointing) as one:
        run(one, 0, 2)


def finetuned(case: Case) -> None:
    """The step of models/memory/rehearsed_step.py, as training takes it: an adapter beside a frozen base."""
    shape = case.shape
    kind = FAMILIES[shape.family]
    model = prepared(
        Step(shape.family, shape.config, shape.length, shape.rows, Method(case.method))  # type: ignore[arg-type]
    )
    model = filled(model.to(DEVICE))
    batch = {
        name: tensor.to(DEVICE)
        for name, tensor in kind.batch.full_batch(shape.config, shape.rows, shape.length).items()
    }
    optimizer = AdamW(model, model.parameter_groups(), AdamWSpec())  # type: ignore[operator]
    half = torch.bfloat16 if shape.precision == "bf16" else torch.float16
    for _ in range(2):
        for _ in range(shape.micro_batches):
            with torch.autocast(DEVICE, half, enabled=shape.precision != "fp32"):
                model(batch).nats.backward()
        gradients = optimizer.gradients()
        optimizer.step(gradients, optimizer.norm(gradients), 1e-3, torch.zeros((), device=DEVICE))
        optimizer.zero_grad()


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """Blocks in few bits come without contents (Blocks.like)."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and not parameter.requires_grad:
            torch.nan_to_num_(parameter.data, 0.0, 0.0, 0.0)
    return model


def said(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"failed: {row['failed']}"
    predicted = f"{row['predicted'] / 1e6:13,.0f}"
    return predicted if "measured" not in row else f"{predicted} {row['measured'] / 1e6:12,.0f} {row['ratio']:6.2f}"


if __name__ == "__main__":
    main()
