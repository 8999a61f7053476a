"""Run as a program of its own by test_quantised_memory.py: anonymous memory before a quantised base is built and after
one training step on it, and what the difference should come to, for two families.

    python quantised_step.py WIDTH DEPTH
"""

import ctypes
import gc
import json
import re
import sys
from pathlib import Path

import torch
from torch import nn

from reducible.models.families.recurrent import Recurrent, RecurrentConfig
from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.models.finetune.lora import Adapter, adapter_parameters, add_adapter
from reducible.models.quantise.quantised_base import Quantisation, quantise_model, quantised
from reducible.models.quantise.reference import bits_per_parameter

VOCABULARY = 64


def anonymous_bytes() -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return 1024 * int(match[1])


def built(family: str, width: int, depth: int) -> nn.Module:
    """Block by block, so that of the dense model there is never more than one of them."""
    with torch.device("meta"):
        model: nn.Module = (
            Transformer(TransformerConfig(VOCABULARY, width, depth, 4))
            if family == "transformer"
            else Recurrent(RecurrentConfig(VOCABULARY, width, depth))
        )
    for block in model.layers:  # type: ignore[union-attr]
        block.to_empty(device="cpu")
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=width**-0.5) if parameter.ndim == 2 else nn.init.ones_(parameter)
        quantise_model(block, Quantisation())
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            at, _, last = name.rpartition(".")
            setattr(model.get_submodule(at), last, nn.Parameter(torch.full(parameter.shape, 0.1)))
    return model


def step(model: nn.Module) -> torch.optim.Optimizer:
    add_adapter(model, Adapter(rank=4))
    optimizer = torch.optim.AdamW([parameter for _, parameter in adapter_parameters(model)])
    tokens = torch.randint(VOCABULARY, (2, 8))
    model({"inputs": tokens, "targets": tokens}).nats.backward()
    optimizer.step()
    return optimizer


def measured(family: str, width: int, depth: int) -> dict[str, float]:
    before = anonymous_bytes()
    model = built(family, width, depth)
    optimizer = step(model)
    after = anonymous_bytes()
    assert all(len(state) == 3 for state in optimizer.state.values())  # both moments and a counter are alive
    blocks = quantised(model).values()
    inside = {id(parameter) for each in blocks for parameter in each.parameters()}
    trained = sum(parameter.numel() for _, parameter in adapter_parameters(model))
    rest = sum(p.nbytes for p in model.parameters() if id(p) not in inside and not p.requires_grad)
    numbers = sum(each.shape[0] * each.shape[1] for each in blocks)
    return {
        "measured": after - before,
        "expected": numbers * bits_per_parameter(4, double=True) / 8 + rest + 16 * trained,
        "quantised numbers": numbers,
    }


def main(width: int, depth: int) -> None:
    torch.set_num_threads(1)
    for family in ("transformer", "recurrent"):
        step(built(family, 64, 1))  # what libraries set up when they are first used
    print(json.dumps({family: measured(family, width, depth) for family in ("transformer", "recurrent")}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
