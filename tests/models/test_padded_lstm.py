"""Sequences of different lengths through one LSTM: against packing, torch's own way, and against each alone."""

import pytest
import torch

from models.padded_lstm import PaddedLSTM

LENGTHS = torch.tensor([5, 1, 9, 3, 8])


def made(dtype: torch.dtype, depth: int, bidirectional: bool) -> tuple[PaddedLSTM, torch.Tensor]:
    torch.manual_seed(0)
    recurrence = PaddedLSTM(6, 4, depth, 0.0, bidirectional).to(dtype)
    with torch.no_grad():
        for parameter in recurrence.parameters():
            parameter.mul_(3.0)  # gates that are driven hard
    return recurrence, torch.randn(5, 9, 6, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shut_gates_give_what_packing_gives(dtype: torch.dtype, depth: int, bidirectional: bool) -> None:
    recurrence, x_BSX = made(dtype, depth, bidirectional)
    real_BS = torch.arange(9) < LENGTHS[:, None]
    seen: list[list[torch.Tensor]] = []
    for way in (recurrence.packed, recurrence.shut):
        outputs_BSD, hidden, cell = way(x_BSX, LENGTHS)
        recurrence.zero_grad()
        x_BSX.grad = None
        (outputs_BSD[real_BS].square().sum() + hidden.sin().sum() + cell.cos().sum()).backward()
        assert x_BSX.grad is not None
        gradients = [x_BSX.grad, *(p.grad for p in recurrence.parameters() if p.grad is not None)]
        seen.append([outputs_BSD[real_BS], hidden, cell, *(gradient.clone() for gradient in gradients)])
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for expected, ours in zip(*seen, strict=True):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


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
        outputs, (hidden, cell) = recurrence.lstm(x_BSX[row : row + 1, :length])
        torch.testing.assert_close(outputs_BSD[row, :length], outputs[0])
        for layer in range(2):
            torch.testing.assert_close(hidden_LBD[layer, row], hidden[2 * layer : 2 * layer + 2, 0].flatten())
            torch.testing.assert_close(cell_LBD[layer, row], cell[2 * layer : 2 * layer + 2, 0].flatten())
