"""What two gloo processes do for test_ranks.py, started once; results go to files that it reads."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from training_cases import (
    CASES,
    FIRST_SCALE,
    Interrupted,
    examples_of,
    gradients_and_weights,
    interrupted_at,
    ragged_examples,
    small_spec,
)

from reducible.tasks.train import loss_scale
from reducible.tasks.train.loop import train
from reducible.tasks.train.train_spec import Execution
from reducible.tasks.workflow.record import Record


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    leads = dist.get_rank() == 0
    for strategy in ("ddp", "fsdp"):
        for case in CASES:
            spec = small_spec(micro_batch=2)
            execution = Execution(workers=2, strategy=strategy)
            seen = gradients_and_weights(spec, execution, examples_of(case, spec), out / f"work-{strategy}-{case}")
            if leads:
                torch.save(seen, out / f"{strategy}-{case}.pt")

        # fp16, from a scale that overflows at first; the same on any CPU.
        torch.ops.mkldnn._is_mkldnn_fp16_supported = lambda: True
        loss_scale.FIRST = FIRST_SCALE
        spec = small_spec(precision="fp16")
        work = out / f"fp16-{strategy}"
        execution = Execution(workers=2, strategy=strategy, log_every=1)
        train(spec, execution, data=ragged_examples(spec), start=None, work=work, record=Record(work / "record", "h"))

    # One training that begins in one process (the test ran that part), goes on under DDP, then under FSDP2.
    spec = small_spec()
    work = out / "chain"
    for strategy, stop in (("ddp", 6), ("fsdp", 9)):
        examples = interrupted_at(ragged_examples(spec), stop, out / f"order-{strategy}-{dist.get_rank()}.txt")
        execution = Execution(workers=2, strategy=strategy, checkpoint_every=3, log_every=1)
        try:
            train(spec, execution, data=examples, start=None, work=work, record=Record(work / "record", strategy))
        except Interrupted:
            dist.barrier()

    # And one that ends under FSDP2, for its whole model.
    spec = small_spec()
    work = out / "whole"
    execution = Execution(workers=2, strategy="fsdp", checkpoint_every=5)
    train(spec, execution, data=ragged_examples(spec), start=None, work=work, record=Record(work / "record", "w"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
