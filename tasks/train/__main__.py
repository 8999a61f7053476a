"""The train step without Ray: python -m reducible.tasks.train, alone or under torch.distributed.run."""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist

from reducible.tasks.train.train_task import train_here


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reducible.tasks.train", description=__doc__)
    parser.add_argument("spec", type=Path, help="JSON file with a TrainSpec")
    parser.add_argument("--execution", type=Path, help="JSON file with an Execution")
    parser.add_argument("--data", type=Path, required=True, help="folder of a dataset artifact")
    parser.add_argument("--start", type=Path, help="folder of the train artifact to continue from")
    parser.add_argument("--base", type=Path, help="folder of the artifact to adapt, if the spec has a method")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, record and model")
    parser.add_argument("--learning-rate", type=float, help="used if the spec has none")
    arguments = parser.parse_args()
    launched = "RANK" in os.environ
    if launched:
        dist.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo")
    result = train_here(
        {
            "spec": arguments.spec.read_text(),
            "execution": arguments.execution.read_text() if arguments.execution else "{}",
            "data": str(arguments.data.absolute()),
            "start": str(arguments.start.absolute()) if arguments.start else None,
            "base": str(arguments.base.absolute()) if arguments.base else None,
            "work": str(arguments.work.absolute()),
            "attempt": f"pid-{os.getpid()}",
            "learning_rate": arguments.learning_rate,
        }
    )
    if not launched or dist.get_rank() == 0:
        print(json.dumps(result))
    if launched:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
