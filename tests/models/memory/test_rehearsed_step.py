"""A rehearsed step against the real one: bytes alive at once, FLOPs, what kernels keep; and what it refuses."""

import pytest
import torch
from torch import nn

from reducible.models.contract import Model
from reducible.models.cost.flop_counter import UncountedOperator, WholeOperators
from reducible.models.families.registry import FAMILIES
from reducible.models.finetune.lora import Adapter, add_adapter
from reducible.models.layers.activation_checkpointing import MODES, set_checkpointing
from reducible.models.loss import Loss
from reducible.models.memory.counted_bytes import Alive
from reducible.models.memory.lstm_workspace import onednn_bytes, onednn_scratch
from reducible.models.memory.rehearsed_step import NO_PRODUCTS, rehearse
from reducible.models.memory.step_plan import Method, step_plan
from reducible.models.quantise.quantised_base import Quantisation, quantise_model

ROWS, LENGTH = 3, 12
PAIRS = {"source_vocabulary": 60, "vocabulary": 64, "shared": False, "width": 64}
CASES = {
    "transformer": ("transformer", {"vocabulary": 64, "width": 64, "depth": 2, "dropout": 0.1}),
    "lstm": ("recurrent", {"vocabulary": 64, "width": 64}),
    "gru in pieces": ("recurrent", {"vocabulary": 64, "width": 64, "cell": "gru", "truncation": 10}),
    "elman": ("recurrent", {"vocabulary": 64, "width": 64, "cell": "elman"}),
    "encoder-decoder": ("encoder-decoder", PAIRS | {"depth": 2}),
    "luong": ("seq2seq", PAIRS),
    "bahdanau": ("seq2seq", PAIRS | {"attention": "bahdanau"}),
    "vae": ("vae", {"vocabulary": 64, "width": 64}),
    "ssm": ("ssm", {"channels": 5, "width": 64, "emission": "bernoulli"}),
    "linear-gaussian": ("linear-gaussian", {"channels": 3, "width": 6}),
}


def real_step(model, batch):
    """Peaks of a first and of a second micro-batch, and FLOPs of the second, of a step that really runs."""
    formulas = {operator: lambda *_, **__: 0 for operator in (*NO_PRODUCTS, *dequantisation())}
    with Alive(onednn_scratch) as alive:
        model = model()
        moments = [torch.zeros_like(p) for p in model.parameters() if p.requires_grad for _ in range(2)]
        alive.peak, peaks = alive.now, []
        for _ in range(2):
            with WholeOperators(formulas) as counter:
                for piece, _ in model.pieces(batch):
                    loss = model(piece)
                    loss.nats.backward()
                    del loss
            peaks.append(alive.peak)
    assert moments
    return *peaks, counter.total


def dequantisation():
    import bitsandbytes  # noqa: F401  registers its operators

    return torch.ops.bitsandbytes.dequantize_4bit, torch.ops.bitsandbytes.dequantize_blockwise


SLOW = ("bahdanau", "linear-gaussian", "gru in pieces", "encoder-decoder")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES])
def test_a_rehearsal_takes_the_bytes_and_flops_of_the_real_step(case: str, mode: str) -> None:
    name, keys = CASES[case]
    kind = FAMILIES[name]
    config = kind.config(**keys)

    def build() -> nn.Module:
        model = kind.build(config).train()
        set_checkpointing(model, mode)
        return model

    batch = kind.batch.full_batch(config, ROWS, LENGTH)
    first, second, flops = real_step(build, batch)
    found = rehearse(build, batch)
    assert found.peak == pytest.approx(first, rel=0.01)
    assert found.accumulating_peak == pytest.approx(second, rel=0.01)
    assert found.flops == flops


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("case", ["transformer", "lstm", "vae"])
def test_a_plan_of_an_adapter_takes_the_bytes_of_the_real_step(case: str, method: str) -> None:
    name, keys = CASES[case]
    kind = FAMILIES[name]
    config = kind.config(**keys | {"width": 128})

    def build() -> nn.Module:
        model = kind.build(config)
        if method == "qlora":
            quantise_model(model, Quantisation())
        add_adapter(model, Adapter(rank=4))
        return model.train()

    # Quantising makes and drops dense matrices: only what the step takes counts.
    _, second, flops = real_step(build, kind.batch.full_batch(config, ROWS, LENGTH))
    plan = step_plan(name, config, Method(method, Adapter(rank=4)), micro_batch=ROWS, sequence=LENGTH, micro_batches=2)
    assert plan.peak == pytest.approx(second, rel=0.01)
    assert plan.flops == flops


def test_flops_are_the_ledgers_and_what_is_computed_twice() -> None:
    from reducible.models.cost.ledger import Lengths

    kind = FAMILIES["transformer"]
    config = kind.config(vocabulary=64, width=64, depth=2)
    cost = kind.cost(config, Lengths.fixed(LENGTH))
    plan = step_plan("transformer", config, micro_batch=ROWS, sequence=LENGTH)
    twice = cost.training_flops_per_unit + cost.attention_recompute_flops_per_unit
    assert plan.flops == ROWS * LENGTH * twice


@pytest.mark.parametrize("size", [(10, 4, 32, 64), (1, 1, 32, 64), (50, 3, 7, 5), (32, 8, 256, 256), (20, 5, 100, 40)])
def test_the_workspace_of_onednns_lstm_is_the_kernels(size: tuple[int, int, int, int]) -> None:
    steps, rows, inputs, hidden = size
    node = nn.LSTM(inputs, hidden)(torch.randn(steps, rows, inputs))[0].grad_fn
    while "Mkldnn" not in type(node).__name__:
        node = node.next_functions[0][0]
    assert onednn_bytes(*size) == node._saved_result3.nbytes


def test_an_operator_without_a_formula_is_an_error_that_names_it() -> None:
    class Strange(Model):
        def __init__(self):
            super().__init__(FAMILIES["linear-gaussian"].config(channels=1))
            self.weight = nn.Parameter(torch.zeros(4, 4))

        def forward(self, batch):
            return Loss(torch.linalg.matrix_exp(self.weight).sum(), torch.tensor(1), {})

    with pytest.raises(UncountedOperator, match="matrix_exp"):
        rehearse(Strange, {})
