"""Sequences of different lengths through one LSTM: against packing, torch's own way, and against each alone."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from reducible.models.layers.padded_lstm import PaddedLSTM

LENGTHS = torch.tensor([5, 1, 9, 3, 8])


def made(dtype: torch.dtype, depth: int, bidirectional: bool) -> tuple[PaddedLSTM, torch.Tensor]:
    torch.manual_seed(0)
    recurrence = PaddedLSTM(6, 4, depth, 0.0, bidirectional).to(dtype)
    with torch.no_grad():
        for parameter in recurrence.parameters():
            parameter.mul_(3.0)  # gates that are driven hard
    return recurrence, torch.randn(5, 9, 6, dtype=dtype, requires_grad=True)


def torchs(recurrence: PaddedLSTM, bidirectional: bool) -> torch.nn.LSTM:
    """All layers in one module of torch's, with the same parameters (not copies: gradients arrive at both)."""
    lstm = torch.nn.LSTM(6, 4, len(recurrence.layers), batch_first=True, bidirectional=bidirectional)
    for number, layer in enumerate(recurrence.layers):
        for name, parameter in layer.named_parameters():
            setattr(lstm, name.replace("_l0", f"_l{number}"), parameter)
    return lstm


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shut_gates_give_what_packing_gives(dtype: torch.dtype, depth: int, bidirectional: bool) -> None:
    recurrence, x_BSX = made(dtype, depth, bidirectional)
    real_BS = torch.arange(9) < LENGTHS[:, None]

    def packed(x_BSX: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, ...]:
        packed = pack_padded_sequence(x_BSX, lengths_B, batch_first=True, enforce_sorted=False)
        outputs, finals = torchs(recurrence, bidirectional)(packed)
        by_layer = (state.unflatten(0, (depth, -1)).transpose(1, 2).flatten(2) for state in finals)
        return pad_packed_sequence(outputs, batch_first=True)[0], *by_layer

    seen: list[list[torch.Tensor]] = []
    for way in (packed, recurrence):
        outputs_BSD, hidden, cell = way(x_BSX, LENGTHS)
        recurrence.zero_grad()
        x_BSX.grad = None
        (outputs_BSD[real_BS].square().sum() + hidden.sin().sum() + cell.cos().sum()).backward()
        assert x_BSX.grad is not None
        gradients = [x_BSX.grad, *(p.grad for p in recurrence.parameters() if p.grad is not None)]
        assert len(gradients) == 1 + len(list(recurrence.parameters()))
        seen.append([outputs_BSD[real_BS], hidden, cell, *(gradient.clone() for gradient in gradients)])
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for expected, ours in zip(*seen, strict=True):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("padded", [False, True])
def test_dropout_lies_between_layers_and_nowhere_else(padded: bool) -> None:
    """All dropped between the layers: what the upper one says does not hang on the input, and is not nothing."""
    torch.manual_seed(0)
    recurrence = PaddedLSTM(6, 4, 2, 0.999999, True)
    lengths_B = LENGTHS if padded else torch.full_like(LENGTHS, 9)
    real_BS = torch.arange(9) < lengths_B[:, None]
    one, other = (recurrence(torch.randn(5, 9, 6), lengths_B) for _ in range(2))
    assert torch.equal(one[0][real_BS], other[0][real_BS]) and one[0].any()
    assert torch.equal(one[1][1], other[1][1]) and not torch.equal(one[1][0], other[1][0])
    recurrence.eval()
    assert not torch.equal(recurrence(torch.randn(5, 9, 6), lengths_B)[0], other[0])


def test_whatever_stands_at_padding_changes_nothing() -> None:
    recurrence, x_BSX = made(torch.float32, 2, True)
    real_BS = torch.arange(9) < LENGTHS[:, None]
    with torch.no_grad():
        expected = recurrence(x_BSX, LENGTHS)
        found = recurrence(torch.where(real_BS[..., None], x_BSX, 100.0), LENGTHS)
    assert torch.equal(found[0][real_BS], expected[0][real_BS])
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2], expected[2])


def test_each_sequence_ends_as_it_ends_alone() -> None:
    recurrence, x_BSX = made(torch.float64, 2, True)
    outputs_BSD, hidden_LBD, cell_LBD = recurrence(x_BSX, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        outputs, (hidden, cell) = torchs(recurrence, True)(x_BSX[row : row + 1, :length])
        torch.testing.assert_close(outputs_BSD[row, :length], outputs[0])
        for layer in range(2):
            torch.testing.assert_close(hidden_LBD[layer, row], hidden[2 * layer : 2 * layer + 2, 0].flatten())
            torch.testing.assert_close(cell_LBD[layer, row], cell[2 * layer : 2 * layer + 2, 0].flatten())
