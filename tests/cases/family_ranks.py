"""What two gloo processes do for test_every_family.py: two steps of every family under DDP and under FSDP2."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from family_cases import family_spec, training_data
from training_cases import gradients_and_weights

from reducible.models.families.registry import FAMILIES
from reducible.tasks.train.train_spec import Execution


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    for name in FAMILIES:
        for strategy in ("ddp", "fsdp"):
            spec = family_spec(name)
            execution = Execution(workers=2, strategy=strategy)
            seen = gradients_and_weights(spec, execution, training_data(spec), out / f"{name}-{strategy}", steps=2)
            if dist.get_rank() == 0:
                torch.save(seen, out / f"{name}-{strategy}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
