"""What two gloo processes do for test_finetuning.py, started once."""

import sys
from itertools import product
from pathlib import Path

import bitsandbytes.functional  # noqa: F401, the package imports both when it needs them: here before ranks are forked
import peft  # noqa: F401
import torch
import torch.distributed as dist
from family_cases import training_data
from finetuning_cases import HALF, METHODS, base_of, tuning_spec
from training_cases import gradients_and_weights, ragged_examples

from reducible.tasks.train.loop import train
from reducible.tasks.train.train_spec import Execution
from reducible.tasks.workflow.record import Record


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    for family_name, method, strategy in product(("transformer", "recurrent"), METHODS, ("ddp", "fsdp")):
        spec = tuning_spec(method, family_name)
        data = ragged_examples(spec) if family_name == "transformer" else training_data(spec)
        execution = Execution(workers=2, strategy=strategy)  # type: ignore[arg-type]
        work, base = out / f"{family_name}-{method}-{strategy}", base_of(spec, out / "bases")
        seen = gradients_and_weights(spec, execution, data, work / "steps", steps=2, base=base)
        if dist.get_rank() == 0:
            torch.save(seen, out / f"{family_name}-{method}-{strategy}.pt")
        if family_name == "transformer":
            record = Record(work / "record", "x")
            train(spec, execution, data=data, start=None, work=work, record=record, base=base)
    if HALF:
        half = tuning_spec("qlora", precision="bf16")
        execution = Execution(workers=2, strategy="fsdp")
        work, base = out / "half", base_of(half, out / "bases")
        seen = gradients_and_weights(half, execution, ragged_examples(half), work, steps=2, base=base)
        if dist.get_rank() == 0:
            torch.save(seen, out / "half.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
