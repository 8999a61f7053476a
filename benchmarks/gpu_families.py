"""Units/s of every family's train step on this device, and the share of the time that its kernels run.

    PYTHONPATH=. python benchmarks/gpu_families.py [--width 512] [--length 256] [--rows 64] [--steps 10]
        [--family seq2seq ...] [--compile] [--json FILE] [--profile FILE] [--smoke]

Made-up batches of full length, bf16 on a GPU. On a CPU it runs too, in fp32, and "kernels" are operators. A unit is
a target token, for series a step. The share is the time in kernels over the time of the steps, both while profiled;
the profile has the ten longest kernels of each family. --smoke: tiny models, to try the program.
"""

import argparse
import gc
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Shape, device_facts, profiled, run, training, write

from reducible.models.families.registry import FAMILIES
from reducible.tasks.train.peak import peak_flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.width, arguments.length, arguments.rows, arguments.steps = 16, 8, 4, 2

    content: dict[str, Any] = {**device_facts(), "rows": []}
    print(f"{content['device']}, torch {torch.__version__}; width {arguments.width}, ", end="")
    print(f"{arguments.rows} x {arguments.length} units")
    print(f"{'family':16} {'parameters':>12} {'units/s':>12} {'ms/step':>9} {'MFU':>7} {'kernels':>8}")
    tables: dict[str, str] = {}
    for name in arguments.family:
        try:
            row, tables[name] = measured(name, arguments)
        except Exception as error:  # the next family may run
            row = {"family": name, "failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        content["rows"].append(row)
        print(said(row), flush=True)
        write(arguments.json, content)
        if arguments.profile is not None:
            arguments.profile.parent.mkdir(parents=True, exist_ok=True)
            arguments.profile.write_text("\n".join(f"{family}\n{table}" for family, table in tables.items()))
        gc.collect()
    failed = [row["family"] for row in content["rows"] if "failed" in row]
    if failed:
        sys.exit(f"gpu_families: failed: {', '.join(failed)}")


def measured(name: str, arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """A row, and a table of the longest kernels."""
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    shape = Shape.of_family(name, arguments.width, arguments.length, arguments.rows, precision)
    with training(shape, compile=arguments.compile) as one:
        run(one, 0, 3)
        began = time.perf_counter()
        run(one, 3, 3 + arguments.steps)
        seconds = (time.perf_counter() - began) / arguments.steps
        busy, wall, averages = profiled(one, 3 + arguments.steps)
        peak = peak_flops(one.world.device, precision)
    cost = FAMILIES[name].cost(shape.config, shape.lengths)
    row = {
        "family": name,
        "parameters": cost.parameters,
        "units_per_second": shape.units / seconds,
        "seconds_a_step": seconds,
        "mfu": shape.units / seconds * cost.training_flops_per_unit / peak if peak else None,
        "share_in_kernels": busy / wall,
    }
    order = "self_device_time_total" if one.world.device.type == "cuda" else "self_cpu_time_total"
    return row, averages.table(sort_by=order, row_limit=10, max_name_column_width=70)


def said(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['family']:16} failed: {row['failed']}"
    mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
    return (
        f"{row['family']:16} {row['parameters']:12,} {row['units_per_second']:12,.0f} "
        f"{row['seconds_a_step'] * 1e3:9.1f} {mfu:>7} {row['share_in_kernels']:8.0%}"
    )


if __name__ == "__main__":
    main()
