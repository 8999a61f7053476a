"""Does the best learning rate of a small width hold at eight times the width?

Trains the transformer at several widths and learning rates on the bytes of the Python standard library, once with the
width rule of models/layers/width_rule.py and once with the standard parameterisation (one learning rate for all, no
factor on the logits), and writes benchmarks/width_rule.csv and benchmarks/width_rule.png.

    python benchmarks/width_rule.py                # about ten minutes on one quiet core
    python benchmarks/width_rule.py --ladder       # depth and heads follow the width, as in a sweep
"""

import argparse
import csv
import math
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch

from reducible.models.families.registry import family
from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.models.layers.width_rule import ParameterGroup

HERE = Path(__file__).parent
SEQUENCE = 64
ROWS = 8


def corpus() -> np.ndarray:
    """Bytes of the standard library's source files, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    files = sorted(path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts))
    return np.frombuffer(b"\0".join(path.read_bytes() for path in files), dtype=np.uint8)


def windows(text: np.ndarray, starts: np.ndarray) -> dict[str, torch.Tensor]:
    rows = torch.from_numpy(text[starts[:, None] + np.arange(SEQUENCE + 1)].astype(np.int64))
    return {"inputs": rows[:, :-1].contiguous(), "targets": rows[:, 1:].contiguous()}


def groups_of(model: Transformer, rule: str) -> list[ParameterGroup]:
    groups = model.parameter_groups()
    if rule == "width rule":
        return groups
    return [group._replace(rate=1.0, decay=float(group.decay > 0)) for group in groups]


def train(config: TransformerConfig, rule: str, rate: float, steps: int, seed: int, text: np.ndarray) -> float:
    """Validation loss, nats per byte, at the end; infinite where the run diverged."""
    torch.manual_seed(seed)
    model = family("transformer").build(config)
    assert isinstance(model, Transformer)
    if rule == "standard":
        model.logit_scale = 1.0
        torch.nn.init.normal_(model.embedding.weight, std=0.02)
    groups = groups_of(model, rule)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(group.parameters), "lr": rate * group.rate, "weight_decay": 0.1 * group.decay}
            for group in groups
        ],
        betas=(0.9, 0.95),
        fused=True,
    )
    warm, cool = steps // 10, steps // 5
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm, (steps - step) / cool)
    )
    cut = int(0.9 * len(text))
    order = np.random.default_rng(seed)
    for _ in range(steps):
        loss = model(windows(text[:cut], order.integers(0, cut - SEQUENCE - 1, ROWS)))
        (loss.nats / loss.units).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    held_out = text[cut:]
    starts = np.linspace(0, len(held_out) - SEQUENCE - 2, 512).astype(np.int64)
    with torch.no_grad():
        loss = model(windows(held_out, starts))
    value = float(loss.nats / loss.units)
    return value if math.isfinite(value) else math.inf


def best_rate(rates: list[float], losses: list[float]) -> float:
    """Vertex of the parabola through the lowest point and its neighbours in log rate; at an edge, the edge."""
    low = int(np.argmin(losses))
    if low in (0, len(rates) - 1) or not np.isfinite(losses[low - 1 : low + 2]).all():
        return rates[low]
    curve = np.polyfit(np.log2(rates[low - 1 : low + 2]), losses[low - 1 : low + 2], 2)
    return float(2 ** (-curve[1] / (2 * curve[0])))


def draw(rows: list[dict], rules: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(rules), figsize=(5.2 * len(rules), 4), sharey=True, squeeze=False)
    for axis, rule in zip(axes[0], rules, strict=True):
        widths = sorted({row["width"] for row in rows})
        for width, colour in zip(widths, plt.cm.viridis(np.linspace(0, 0.85, len(widths))), strict=True):
            curve = sorted(
                (row["learning_rate"], row["loss"]) for row in rows if row["rule"] == rule and row["width"] == width
            )
            rates, losses = [list(column) for column in zip(*curve, strict=True)]
            axis.plot(rates, losses, "o-", color=colour, label=f"width {width}")
            axis.axvline(best_rate(rates, losses), color=colour, linestyle=":")
        axis.set(xscale="log", xlabel="learning rate of the recipe", title=rule)
        axis.legend()
    axes[0][0].set_ylabel("validation loss, nats per byte")
    finite = [row["loss"] for row in rows if row["loss"] < 4]
    axes[0][0].set_ylim(min(finite) - 0.05, min(finite) + 1.2)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="16,32,64,128")
    parser.add_argument("--exponents", default="-10,-9,-8,-7,-6,-5,-4", help="learning rates as powers of two")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", default="width rule,standard")
    parser.add_argument("--ladder", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE / "width_rule")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = corpus()
    rules = arguments.rules.split(",")
    rates = [2.0 ** float(exponent) for exponent in arguments.exponents.split(",")]
    rows: list[dict] = []
    for rule in rules:
        for width in map(int, arguments.widths.split(",")):
            config = TransformerConfig(vocabulary=256, width=width, depth=2, heads=max(1, width // 32))
            if arguments.ladder:
                config = config.scaled(width)
            began, losses = time.perf_counter(), []
            for rate in rates:
                losses.append(train(config, rule, rate, arguments.steps, arguments.seed, text))
                row = {"rule": rule, "width": width, "depth": config.depth, "learning_rate": rate}
                rows.append(row | {"loss": losses[-1]})
            print(
                f"{rule:10} width {width:4} "
                + " ".join(f"{loss:6.3f}" for loss in losses)
                + f"  best 2^{math.log2(best_rate(rates, losses)):.1f}  {time.perf_counter() - began:.0f} s",
                flush=True,
            )
    with arguments.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, rules, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
