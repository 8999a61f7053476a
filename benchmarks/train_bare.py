"""What the train step costs over the same model in a bare PyTorch loop, on one core.

    python benchmarks/train_bare.py [--widths 8 16 32 64 128] [--batch 512] [--seconds 4] [--repeats 5]

Ours runs whole: data order, log rows every ten steps, guards, checkpoints at the given interval. Bare is what one
would write in twenty lines: batches from memory, fused torch.optim.AdamW, clip_grad_norm_, no logging at all. The two
take turns in one process, so that what else the machine does meets both; the ratio is the median over turns.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from train_corpus import flat_tokens, make_dataset, median, one_core

from models.families import family
from tasks.record import Record
from tasks.train.loop import Training
from tasks.train.spec import Execution, TrainSpec

SEQUENCE = 128


class Clock:
    """Looks at the time when two steps ask for their micro-batches: all that is done in between counts."""

    def __init__(self, batches: object, first: int, last: int) -> None:
        self.fetch, self.units = batches.fetch, batches.units  # type: ignore[attr-defined]
        self.batches, self.first, self.last = batches, first, last
        self.times: list[tuple[float, float]] = []

    def micro_batches(self, step: int) -> list:
        if step in (self.first, self.last):
            self.times.append((time.perf_counter(), time.process_time()))
        return self.batches.micro_batches(step)  # type: ignore[attr-defined]


def ours(spec: TrainSpec, data: Path, steps: int, checkpoint_every: int | None) -> tuple[float, float]:
    """Wall and CPU seconds per step."""
    warm = 5
    spec = spec.model_copy(update={"stop_step": warm + steps + 1})
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        execution = Execution(log_every=10, checkpoint_every=checkpoint_every)
        training = Training(spec, execution, data, None, work, Record(work / "record", "benchmark"), None)
        clock = Clock(training.examples.train, warm, warm + steps)
        object.__setattr__(training.examples, "train", clock)
        training.run()
        training.checkpoints.close()
    (wall, cpu), (wall_end, cpu_end) = clock.times
    return (wall_end - wall) / steps, (cpu_end - cpu) / steps


def bare(spec: TrainSpec, tokens: torch.Tensor, steps: int) -> tuple[float, float]:
    kind = family(spec.family)
    torch.manual_seed(0)
    model = kind.build(kind.config(**spec.model)).train()
    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters)} for group in model.parameter_groups()],  # type: ignore[operator]
        lr=1e-3,
        betas=(0.9, 0.95),
        fused=True,
    )
    rows = spec.batch // SEQUENCE
    for step in range(5 + steps):
        if step == 5:
            wall, cpu = time.perf_counter(), time.process_time()
        starts = torch.randint(len(tokens) - SEQUENCE - 1, (rows,)).tolist()
        inputs = torch.stack([tokens[i : i + SEQUENCE] for i in starts])
        targets = torch.stack([tokens[i + 1 : i + 1 + SEQUENCE] for i in starts])
        logits = model.logits(inputs)  # type: ignore[operator]
        F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--batch", type=int, default=512, help="target units per step")
    parser.add_argument("--seconds", type=float, default=4, help="of each turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkpoint-every", type=int, help="steps; default none but the last")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "reducible-benchmark")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    one_core()
    data = make_dataset(arguments.cache)
    import numpy as np

    tokens = torch.from_numpy(np.fromfile(flat_tokens(data), dtype=np.uint16).astype(np.int64))
    print(f"batch {arguments.batch} bytes, sequence {SEQUENCE}; wall time (CPU time)")
    print(f"{'parameters':>10} {'ours tok/s':>12} {'bare tok/s':>12} {'ours/bare':>10} {'by CPU time':>12}")
    for width in arguments.widths:
        kind = family("transformer")
        config = kind.config(vocabulary=257).scaled(width)
        model = {name: getattr(config, name) for name in config.__dataclass_fields__}
        spec = TrainSpec(
            model=model, sequence=SEQUENCE, stop_step=1, batch=arguments.batch, micro_batch=arguments.batch // SEQUENCE
        )
        per_step, _ = bare(spec, tokens, 20)
        steps = max(20, int(arguments.seconds / per_step))
        turns = []
        for turn in range(arguments.repeats):
            if turn % 2:
                second = bare(spec, tokens, steps)
                turns.append((ours(spec, data, steps, arguments.checkpoint_every), second))
            else:
                first = ours(spec, data, steps, arguments.checkpoint_every)
                turns.append((first, bare(spec, tokens, steps)))
        ratio = median([b[0] / o[0] for o, b in turns])
        cpu_ratio = median([b[1] / o[1] for o, b in turns])
        ours_speed = arguments.batch / median([o[0] for o, _ in turns])
        bare_speed = arguments.batch / median([b[0] for _, b in turns])
        count = kind.cost(config, SEQUENCE).parameters
        print(f"{count:>10,} {ours_speed:>12,.0f} {bare_speed:>12,.0f} {ratio:>10.3f} {cpu_ratio:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
