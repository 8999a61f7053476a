"""The ledger of cost against torch's counter and against what autograd really holds."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reducible.models.cost.flop_counter import count_flops
from reducible.models.cost.ledger import Lengths, state_bytes
from reducible.models.families.transformer import Transformer, TransformerConfig, transformer_cost
from reducible.models.layers.activation_checkpointing import set_checkpointing
from reducible.models.memory.counted_bytes import held_bytes

ROWS, LENGTH = 3, 20

CONFIGS = {
    "swiglu": {},
    "gelu": {"activation": "gelu"},
    "untied": {"tied": False},
    "grouped": {"heads": 4, "key_value_heads": 2},
    "one key": {"heads": 4, "key_value_heads": 1, "feed_forward": 50, "depth": 3},
    "dropout": {"dropout": 0.2},
    "documents": {"documents": True},
    "wide head": {"heads": 1, "width": 40, "activation": "gelu", "tied": False, "dropout": 0.1},
}


@pytest.fixture(params=CONFIGS)
def case(request):
    keys = {"vocabulary": 37, "width": 32, "depth": 2, "heads": 2, **CONFIGS[request.param]}
    documents = keys.pop("documents", False)
    config = TransformerConfig(**keys)
    torch.manual_seed(0)
    batch = {name: torch.randint(37, (ROWS, LENGTH)) for name in ("inputs", "targets")}
    if documents:
        batch["documents"] = (torch.arange(LENGTH) // 7).expand(ROWS, -1).contiguous()
    return Transformer(config), batch, transformer_cost(config, Lengths.fixed(LENGTH))


def counted(run):
    return count_flops(run) / (ROWS * LENGTH)


def counted_by_torch(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / (ROWS * LENGTH)


def test_parameters_are_exact(case):
    model, _, cost = case
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    tables = model.embedding.weight.numel() + (0 if model.output is None else model.output.weight.numel())
    assert cost.parameters_without_embeddings == cost.parameters - tables


def test_flops_are_exact_against_the_counter(case):
    model, batch, cost = case
    assert counted(lambda: model.logits(batch["inputs"], batch.get("documents"))) == cost.forward_flops_per_unit
    # The counter's formula for fused attention includes the scores that its backward computes again.
    total = cost.training_flops_per_unit + cost.attention_recompute_flops_per_unit
    assert counted(lambda: model(batch).nats.backward()) == total


def test_flops_are_exact_against_the_plain_counter_without_fused_attention(case):
    """No registration of ours is involved: plain matrix products, nothing computed twice."""
    model, batch, cost = case
    with sdpa_kernel(SDPBackend.MATH):
        assert counted_by_torch(lambda: model(batch).nats.backward()) == cost.training_flops_per_unit


def test_recomputation_under_checkpointing_is_exact_and_apart(case):
    model, batch, cost = case
    set_checkpointing(model, "full")
    with sdpa_kernel(SDPBackend.MATH):
        total = counted_by_torch(lambda: model(batch).nats.backward())
    assert total - cost.training_flops_per_unit == cost.checkpointing_flops_per_unit


def test_the_textbook_formula_is_ours():
    """6 N + 12 L d T per token, N the matrices that multiply (tied output included, norms not)."""
    config = TransformerConfig(vocabulary=50304, width=768, depth=12, heads=12, activation="gelu")
    cost = transformer_cost(config, Lengths.fixed(1024))
    matrices = 12 * 12 * 768**2 + 50304 * 768
    assert cost.training_flops_per_unit == 6 * matrices + 12 * 12 * 768 * 1024
    assert cost.training_flops_per_unit / 1e9 == pytest.approx(0.855, abs=5e-4)  # facts: GPT-2 124M


def held(model, batch):
    return held_bytes(lambda: model(batch), [*model.parameters(), *batch.values()])


def test_activation_bytes_are_what_autograd_holds(case):
    model, batch, cost = case
    config = model.config
    constants = LENGTH * config.head_size // 2 * 8 + 4 * config.width + 4  # positions, last gain, count of targets
    if "documents" in batch:
        constants += ROWS * LENGTH * LENGTH * 4  # the mask, once for all layers
    assert held(model, batch) == cost.activation_bytes(ROWS * LENGTH) + constants


def test_checkpointed_activations_are_one_input_a_block_and_one_block(case):
    model, batch, cost = case
    config = model.config
    within = held(model, batch)
    set_checkpointing(model, "full")
    units = ROWS * LENGTH
    # Before backward: the outside and one input a block; the block that is rebuilt comes on top.
    inputs = 4 * units * config.width * config.depth
    outside = 4 * units * ((3 + (config.dropout > 0)) * config.width + 1 + config.vocabulary)
    block = cost.activation_bytes(units, checkpointing="full") - inputs - outside
    assert cost.activation_bytes(units) == outside + config.depth * block
    small = 4 * config.width + 4 + LENGTH * config.head_size // 2 * 8 + ROWS * LENGTH * LENGTH * 4
    assert inputs + outside <= held(model, batch) <= inputs + outside + small < within


def test_state_bytes_are_those_of_adamw():
    model = Transformer(TransformerConfig(vocabulary=37, width=32, depth=2, heads=2))
    optimizer = torch.optim.AdamW(model.parameters())
    batch = {name: torch.randint(37, (ROWS, LENGTH)) for name in ("inputs", "targets")}
    model(batch).nats.backward()
    optimizer.step()
    expected = state_bytes(transformer_cost(model.config, Lengths.fixed(LENGTH)).parameters)
    assert expected.weights == sum(p.nbytes for p in model.parameters())
    assert expected.gradients == sum(p.grad.nbytes for p in model.parameters())
    moments = [s[name].nbytes for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert expected.optimizer == sum(moments)
    assert expected.total == 16 * sum(p.numel() for p in model.parameters())
