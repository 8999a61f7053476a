"""How long does a step of LoRA and of QLoRA take beside one of full fine-tuning? In turns, in one process.

PYTHONPATH=. python benchmarks/finetune_step.py SmolLM2-135M-Instruct.Q4_1.gguf --rows 2 --sequence 256
PYTHONPATH=. python benchmarks/finetune_step.py stories260K.bin --rows 8 --sequence 128
"""

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from reducible.models.finetune.lora import Adapter, add_adapter
from reducible.models.layers.width_rule import one_rate
from reducible.models.quantise.quantised_base import Quantisation, quantise_model
from reducible.models.weights.pretrained import load_checkpoint
from reducible.tasks.train.optimizers.adamw import AdamW, AdamWSpec

RANKS = (1, 2, 8)


def prepared(base: nn.Module, method: str, rank: int) -> tuple[nn.Module, AdamW]:
    model = copy.deepcopy(base).train()
    if method == "qlora":
        quantise_model(model, Quantisation())
    if method != "full":
        add_adapter(model, Adapter(rank, 2.0 * rank))
    return model, AdamW(model, one_rate(model.parameter_groups()), AdamWSpec())  # type: ignore[arg-type]


def step(model: nn.Module, optimizer: AdamW, batch: dict[str, torch.Tensor]) -> float:
    """Processor seconds of forward, backward and update."""
    start = time.process_time()
    loss = model(batch)
    (loss.nats / loss.units).backward()
    gradients = optimizer.gradients()
    optimizer.step(gradients, optimizer.norm(gradients), 1e-5, torch.zeros(()))
    optimizer.zero_grad()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--sequence", type=int, required=True)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = load_checkpoint(arguments.base)
    methods = [("full", 0), *((method, rank) for method in ("lora", "qlora") for rank in RANKS)]
    models = [prepared(base, method, rank) for method, rank in methods]
    tokens = torch.randint(base.config.vocabulary, (arguments.rows, arguments.sequence + 1))
    batch = {"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}
    taken = [[step(*model, batch) for model in models] for _ in range(arguments.turns + 1)][1:]
    seconds = [statistics.median(column) for column in zip(*taken, strict=True)]
    for (method, rank), each in zip(methods, seconds, strict=True):
        print(f"| {method} | {rank or '-'} | {each:.3f} | {each / seconds[0]:.2f} |")


if __name__ == "__main__":
    main()
