"""FLOPs of fine-tuning with an adapter, against torch's counter on the real step and against arithmetic by hand."""

from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel

from reducible.models.cost.adapted import adapted_cost
from reducible.models.cost.flop_counter import count_flops
from reducible.models.cost.ledger import Lengths
from reducible.models.families.recurrent import RecurrentConfig
from reducible.models.families.registry import FAMILIES
from reducible.models.families.transformer import TransformerConfig
from reducible.models.families.vae import VaeConfig
from reducible.models.finetune.lora import Adapter, add_adapter

T = 24
CASES: dict[str, Any] = {
    "transformer": TransformerConfig(31, 16, 2, 2),
    "recurrent": RecurrentConfig(31, 16, 2),
    "vae": VaeConfig(31, 16, 4, depth=2),
}


@pytest.mark.parametrize("adapter", [Adapter(3), Adapter(1, targets=("*.1.*",))], ids=["all", "second layer"])
@pytest.mark.parametrize("name", CASES)
def test_flops_are_those_of_the_counter(name: str, adapter: Adapter) -> None:
    kind, config = FAMILIES[name], CASES[name]
    cost = adapted_cost(kind, config, adapter, Lengths.fixed(T))
    batch = kind.batch.full_batch(config, 4, T)
    model = kind.build(config).train()
    with sdpa_kernel(SDPBackend.MATH):  # fused attention computes its scores a second time, which is no model FLOP
        add_adapter(model, adapter)
        counted = count_flops(lambda: model(batch).nats.backward())
    assert 4 * T * cost.training_flops_per_unit == pytest.approx(counted, rel=1e-12)
    assert cost.parameters == kind.cost(config, Lengths.fixed(T)).parameters


def test_frozen_matrices_of_a_transformer_cost_no_gradient_of_their_own() -> None:
    """By hand: of a matrix's three products the one towards itself goes, and the lowest needs no input gradient."""
    config, rank = TransformerConfig(31, 16, 2, 2), 3
    full = FAMILIES["transformer"].cost(config, Lengths.fixed(T))
    adapted = adapted_cost(FAMILIES["transformer"], config, Adapter(rank), Lengths.fixed(T))
    width, hidden = 16, config.hidden
    shapes = [(width, 3 * width), (width, width), (width, 2 * hidden), (hidden, width)]
    frozen = 2 * (config.depth * sum(a * b for a, b in shapes) + 31 * width)
    updates = 6 * config.depth * sum(rank * (a + b) for a, b in shapes)
    lowest = 2 * width * 3 * width + 2 * rank * width
    assert adapted.training_flops_per_unit == full.training_flops_per_unit - frozen + updates - lowest


def test_a_batch_of_other_length_costs_attention_accordingly() -> None:
    config = TransformerConfig(31, 16, 2, 2)
    short, long = (
        adapted_cost(FAMILIES["transformer"], config, Adapter(1), Lengths.fixed(t)).training_flops_per_unit
        for t in (T, 2 * T)
    )
    assert long - short == pytest.approx(3 * 2 * 4 * T * 16)  # 3 x depth x 4 T width


def test_a_model_that_is_never_made_can_be_asked_about() -> None:
    """A billion parameters in fp32 and their gradients, 8 GB, in seconds."""
    config = TransformerConfig(32000, 4096, 5, 32)
    cost = adapted_cost(FAMILIES["transformer"], config, Adapter(8), Lengths.fixed(512))
    assert 0.6 < cost.training_flops_per_unit / (6 * cost.parameters) < 0.8
