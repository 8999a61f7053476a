"""An LSTM in half precision, on any CPU: one with the instructions for it and one without."""

import pytest
import torch
from torch import nn

from reducible.models.layers.lstm import LSTM, has_kernel
from reducible.models.layers.padded_lstm import PaddedLSTM

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("from_states", [False, True])
def test_under_autocast_it_computes_what_it_does_in_fp32(half: torch.dtype, from_states: bool) -> None:
    torch.manual_seed(0)
    ours, peer = LSTM(6, 8, num_layers=2), nn.LSTM(6, 8, num_layers=2)
    peer.load_state_dict(ours.state_dict())
    x_TBX = torch.randn(5, 3, 6)
    states = (torch.randn(2, 3, 8), torch.randn(2, 3, 8)) if from_states else None
    expected, after = peer(x_TBX, states)
    expected.sum().backward()
    with torch.autocast("cpu", half):
        given = None if states is None else (states[0].to(half), states[1].to(half))
        found, found_after = ours(x_TBX.to(half), given)
        found.float().sum().backward()
    assert {found.dtype, found_after[0].dtype, found_after[1].dtype} == {half}
    for one, other in ((found, expected), (found_after[0], after[0]), (found_after[1], after[1])):
        torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.02)
    for name, parameter in ours.named_parameters():
        gradient = peer.get_parameter(name).grad
        assert parameter.grad is not None and gradient is not None
        assert (parameter.grad - gradient).abs().max() <= 0.03 * gradient.abs().max(), name


def test_outside_autocast_it_is_nn_lstm_to_the_bit() -> None:
    torch.manual_seed(0)
    ours, peer = LSTM(6, 8), nn.LSTM(6, 8)
    peer.load_state_dict(ours.state_dict())
    x_TBX = torch.randn(5, 3, 6)
    assert torch.equal(ours(x_TBX)[0], peer(x_TBX)[0])


@pytest.mark.parametrize("half", HALF)
def test_a_padded_one_under_autocast(half: torch.dtype) -> None:
    torch.manual_seed(0)
    lstm = PaddedLSTM(6, 8, 2, 0.0, bidirectional=True)
    x_BSX, lengths_B = torch.randn(3, 5, 6), torch.tensor([5, 2, 4])
    expected = lstm(x_BSX, lengths_B)
    with torch.autocast("cpu", half):
        found = lstm(x_BSX, lengths_B)
    real_BS = torch.arange(5) < lengths_B[:, None]
    for one, other in ((found[0][real_BS], expected[0][real_BS]), *zip(found[1:], expected[1:], strict=True)):
        assert one.dtype == half
        torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.02)


def test_asking_for_the_kernel_draws_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    has_kernel.cache_clear()
    has_kernel(torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
