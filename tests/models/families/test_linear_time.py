"""Backward of every recurrence is linear in time, by counted work: products, and bytes of every tensor that is made."""

import pytest
import torch
from torch import Tensor, nn

from reducible.models.cost.flop_counter import count_flops
from reducible.models.families.recurrent import Recurrent, RecurrentConfig
from reducible.models.families.seq2seq import Seq2Seq, Seq2SeqConfig
from reducible.models.families.ssm import POSTERIORS, TRANSITIONS, SsmConfig, StateSpace
from reducible.models.families.vae import Vae, VaeConfig
from reducible.models.memory.counted_bytes import made_bytes

B, WIDTH, VOCABULARY = 3, 16, 11


def tokens(length: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (B, length))


def text(length: int) -> dict[str, Tensor]:
    return {"inputs": tokens(length), "targets": tokens(length)}


def pairs(source: int, target: int) -> dict[str, Tensor]:
    lengths_B = torch.tensor([source, source - 7, source // 2])
    return {"source": tokens(source), "source_lengths": lengths_B, **text(target)}


def series(length: int) -> dict[str, Tensor]:
    observed_BTC = torch.rand(B, length, 2) < 0.9
    values_BTC = torch.randn(B, length, 2) * observed_BTC
    return {"values": values_BTC, "observed": observed_BTC, "steps": torch.ones(B, length, dtype=torch.bool)}


def recurrent(**keys: str) -> nn.Module:
    return Recurrent(RecurrentConfig(VOCABULARY, WIDTH, 1, **keys))  # type: ignore[arg-type]


def seq2seq(**keys: str) -> nn.Module:
    return Seq2Seq(Seq2SeqConfig(VOCABULARY, VOCABULARY, True, WIDTH, **keys))  # type: ignore[arg-type]


CASES = {
    **{f"recurrent {cell}": (lambda cell=cell: recurrent(cell=cell), text) for cell in ("lstm", "gru", "elman")},
    # Attention is a product of source and target, so one of them grows at a time.
    **{
        f"seq2seq {attention}, {side}": (
            lambda attention=attention: seq2seq(attention=attention),
            (lambda T: pairs(24, T)) if side == "target" else (lambda S: pairs(S, 24)),
        )
        for attention in ("none", "luong", "bahdanau")
        for side in ("source", "target")
    },
    "vae": (lambda: Vae(VaeConfig(VOCABULARY, WIDTH, 4)), text),
    **{
        f"ssm {posterior}, {transition}": (
            lambda posterior=posterior, transition=transition: StateSpace(
                SsmConfig(channels=2, width=WIDTH, posterior=posterior, transition=transition)
            ),
            series,
        )
        for posterior in POSTERIORS
        for transition in TRANSITIONS
    },
}


def work(model: nn.Module, batch: dict[str, Tensor]) -> tuple[int, int]:
    """FLOPs of products, and bytes made."""
    return count_flops(model(batch).nats.backward), made_bytes(model(batch).nats.backward)


@pytest.mark.parametrize("name", CASES)
def test_backward_is_linear_in_time(name: str) -> None:
    build, batch_of = CASES[name]
    torch.manual_seed(0)
    model = build()
    short, long = (work(model, batch_of(length)) for length in (64, 128))
    assert 1 < long[0] / short[0] < 2.03
    assert 1 < long[1] / short[1] < 2.03


def test_the_count_of_bytes_sees_a_loop_that_is_quadratic() -> None:
    """The trap that the families stay clear of: x[t] writes a tensor of zeros as large as x for every step."""
    cell = nn.LSTMCell(16, 16)
    made = []
    for length in (64, 128):
        x = torch.randn(length, B, 16, requires_grad=True)
        h = c = torch.zeros(B, 16)
        for t in range(length):
            h, c = cell(x[t], (h, c))
        made.append(made_bytes(lambda h=h: h.sum().backward()))  # type: ignore[misc]
    assert made[1] / made[0] > 2.5
