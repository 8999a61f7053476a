"""How a training step may be run, by name: what recipes, specs and the planner choose from. No torch."""

from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
"""Of matrix products and activations."""
Checkpointing = Literal["none", "full", "selective", "sqrt-time"]
"""How much is computed again in backward (models/layers/activation_checkpointing.py)."""
Strategy = Literal["none", "ddp", "fsdp"]
"""What keeps the parameters of several ranks equal."""
Adaptation = Literal["full", "lora", "qlora"]
"""What is trained: all weights, or an adapter beside a base that is as it was (lora) or in few bits (qlora)."""
FewBits = Literal["nf4", "fp4", "int8"]
"""How a base in few bits is stored (models/quantise/quantised_base.py)."""


def strategy_on(world: int, strategy: Strategy) -> Strategy:
    """What a strategy comes to: one rank has nobody to agree with, and several agree by DDP unless told otherwise."""
    if world == 1:
        return "none"
    return "ddp" if strategy == "none" else strategy
