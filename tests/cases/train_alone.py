"""One training in a process of its own, which may kill itself: train_alone.py WORK [STEP DELAY]."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch.distributed as dist
from training_cases import ragged_examples, small_spec

from reducible.tasks.train.loop import train
from reducible.tasks.train.step import Step
from reducible.tasks.train.train_spec import Execution
from reducible.tasks.workflow.record import Record

DROPOUT = {"vocabulary": 17, "width": 16, "depth": 2, "heads": 2, "dropout": 0.2}


def kill_in_step(step: int, delay: float) -> None:
    """SIGKILL some seconds after the step has begun: in it, in a checkpoint's thread, or in a later step."""
    run_step = Step.__call__

    def step_or_die(self: Step, now: int) -> None:
        if now == step:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        run_step(self, now)

    Step.__call__ = step_or_die  # type: ignore[method-assign]


def main(work: Path, *kill: str, **changes: Any) -> None:
    workers = int(os.environ.get("WORLD_SIZE", "1"))
    if workers > 1:
        dist.init_process_group("gloo")
    if kill and os.environ.get("RANK", "0") == str(workers - 1):
        kill_in_step(int(kill[0]), float(kill[1]))
    spec = small_spec(model=DROPOUT, stop_step=30, spike_guard=6.0, **changes)
    execution = Execution(workers=workers, checkpoint_every=4, log_every=3)
    record = Record(work / "record", f"pid-{os.getpid()}")
    train(spec, execution, data=ragged_examples(spec), start=None, work=work, record=record)
    if workers > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
