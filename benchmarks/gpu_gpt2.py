"""Tokens/s and MFU of the train step on one GPU, for the shape of GPT-2 124M: bf16, sequence 1024, torch.compile.

    PYTHONPATH=. python benchmarks/gpu_gpt2.py [--micro-batch 64 32] [--batch 524288] [--steps 10] [--seconds 150]
        [--no-compile] [--json FILE] [--profile FILE] [--smoke]

The step is the one that every training takes, fed with random tokens, at one size of micro-batch after another; none
is begun that would end after --seconds, judged by the one before. The profile, of the first size, says where the time
of the device goes and how much of it is idle. Published shares of an H100: 450-470k tokens/s, 40 % MFU at 0.855 GFLOP
a token. --smoke: a tiny model, also on a CPU, to try the program.
"""

import argparse
import gc
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Shape, device_facts, profiled, run, training, write

from reducible.models.families.registry import family
from reducible.models.families.transformer import TransformerConfig
from reducible.tasks.train.loop import Training
from reducible.tasks.train.peak import peak_flops

SEQUENCE, VOCABULARY = 1024, 50304  # 50257 rounded up to a multiple of 128, as all the published figures have it
GPT2 = TransformerConfig(VOCABULARY, 768, 12, 12, feed_forward=3072, activation="gelu")
WARM_UP = 3
"""Steps before the clock starts: compilation, the allocator's growth, the choice of kernels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[64, 32], help="sequences a pass")
    parser.add_argument("--batch", type=int, default=524_288, help="tokens a step, cut to whole passes")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not arguments.smoke:
        sys.exit("gpu_gpt2: no CUDA device here; run it where torch.cuda.is_available(), or try it with --smoke")

    content: dict[str, Any] = {**device_facts(), "compiled": not arguments.no_compile, "rows": []}
    began = time.perf_counter()
    longest = 0.0
    for number, rows in enumerate([2] if arguments.smoke else arguments.micro_batch):
        if time.perf_counter() - began + longest > arguments.seconds:
            print(f"micro-batch {rows}: no time left")
            break
        start = time.perf_counter()
        try:
            row = measured(shape_of(rows, arguments, on_gpu), arguments, arguments.profile if number == 0 else None)
        except torch.OutOfMemoryError as error:
            row = {"micro_batch": rows, "failed": str(error).splitlines()[0]}
        content["rows"].append(row)
        write(arguments.json, content)
        print(said(row), flush=True)
        torch._dynamo.reset()
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
        longest = max(longest, time.perf_counter() - start)
    if all("failed" in row for row in content["rows"]):
        sys.exit("gpu_gpt2: nothing could be measured")


def shape_of(rows: int, arguments: argparse.Namespace, on_gpu: bool) -> Shape:
    if arguments.smoke:
        return Shape("transformer", TransformerConfig(128, 32, 2, 2), 32, rows, 2, "bf16" if on_gpu else "fp32")
    return Shape("transformer", GPT2, SEQUENCE, rows, max(1, arguments.batch // (rows * SEQUENCE)), "bf16")


def measured(shape: Shape, arguments: argparse.Namespace, profile: Path | None) -> dict[str, Any]:
    cost = family("transformer").cost(shape.config, shape.lengths)
    with training(shape, compile=not arguments.no_compile) as one:
        device = one.world.device
        began = time.perf_counter()
        run(one, 0, WARM_UP)
        warming = time.perf_counter() - began
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        run(one, WARM_UP, WARM_UP + arguments.steps)
        seconds = (time.perf_counter() - began) / arguments.steps
        speed, peak = shape.units / seconds, peak_flops(device, shape.precision)
        row = {
            "micro_batch": shape.rows,
            "micro_batches": shape.micro_batches,
            "parameters": cost.parameters,
            "warm_up_seconds": warming,
            "seconds_a_step": seconds,
            "tokens_per_second": speed,
            "flops_per_token": cost.training_flops_per_unit,
            "mfu": speed * cost.training_flops_per_unit / peak if peak else None,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        }
        if profile is not None:
            row["share_in_kernels"] = share_in_kernels(one, WARM_UP + arguments.steps, profile)
    return row


def share_in_kernels(one: Training, first: int, file: Path) -> float:
    """Writes the operators and kernels of one step as a table; the share of the time that kernels ran."""
    busy, wall, averages = profiled(one, first)
    order = "self_device_time_total" if one.world.device.type == "cuda" else "self_cpu_time_total"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        f"One step, kernels {busy:.4f} s of {wall:.4f} s (the profiler's own time in it)\n"
        + averages.table(sort_by=order, row_limit=40, max_name_column_width=90)
    )
    return busy / wall


def said(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"micro-batch {row['micro_batch']}: {row['failed']}"
    mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
    memory = "-" if row["peak_gib"] is None else f"{row['peak_gib']:.1f} GiB"
    return (
        f"{row['micro_batch']} x {row['micro_batches']} sequences: "
        f"{row['tokens_per_second']:,.0f} tokens/s, MFU {mfu}, "
        f"{row['seconds_a_step'] * 1e3:.1f} ms a step, {memory}, first steps {row['warm_up_seconds']:.0f} s, "
        f"{row['parameters']:,} parameters at {row['flops_per_token'] / 1e9:.3f} GFLOP a token (attention in full)"
    )


if __name__ == "__main__":
    main()
