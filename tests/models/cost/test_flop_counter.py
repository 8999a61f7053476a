"""The counter of FLOPs against sums by hand, over every path that a recurrence takes, and its refusals."""

import pytest
import torch
from torch import nn

from reducible.models.cost.flop_counter import FORMULAS, UncountedOperator, count_flops, multiplies
from reducible.models.layers.lstm import LSTM

aten = torch.ops.aten
B, T, X, H = 3, 7, 5, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def by_hand(gates: int, layers: int, directions: int = 1) -> int:
    """2 x tokens x every matrix: the input's and the state's, of each gate."""
    first = gates * H * (X + H)
    later = gates * H * (directions * H + H)
    return 2 * B * T * directions * (first + (layers - 1) * later)


PATHS = {
    "fused": {},
    "without bias": {"bias": False},
    "dropout": {"dropout": 0.5},
    "both directions": {"bidirectional": True},
    "double": {"dtype": torch.float64},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cell", GATES)
def test_recurrences_count_what_the_sum_by_hand_says(cell: str, path: str) -> None:
    recurrence = getattr(nn, cell)(X, H, 2, batch_first=True, **PATHS[path])
    x = torch.randn(B, T, X, dtype=PATHS[path].get("dtype"), requires_grad=True)
    forward = by_hand(GATES[cell], 2, 2 if path == "both directions" else 1)
    assert count_flops(lambda: recurrence(x)) == forward

    def without_gradients() -> None:
        with torch.inference_mode():
            recurrence(x.detach())

    assert count_flops(without_gradients) == forward
    # Towards the inputs and towards the weights: as much again, twice, but for the state before the first step: the
    # loop over time asks for no gradient towards that one.
    first_state = 2 * B * GATES[cell] * H * H * 2 * (2 if path == "both directions" else 1)
    training = count_flops(lambda: recurrence(x)[0].sum().backward())
    assert training in (3 * forward, 3 * forward - first_state)
    assert (training == 3 * forward) == (cell == "LSTM" and path != "double")


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("keys", [{"mkldnn": False}, {"packed": True}, {"half": True}])
def test_an_lstm_counts_the_same_by_any_path(keys: dict[str, bool]) -> None:
    lstm, x = LSTM(X, H, 2, batch_first=True), torch.randn(B, T, X)
    with (
        torch.backends.mkldnn.flags(enabled=keys.get("mkldnn", True)),
        torch.autocast("cpu", torch.bfloat16, enabled="half" in keys),
    ):
        packed = nn.utils.rnn.pack_padded_sequence(x, [T] * B, batch_first=True)
        assert count_flops(lambda: lstm(packed if "packed" in keys else x)) == by_hand(4, 2)


def test_cudnn_is_counted_by_its_arguments() -> None:
    """Without a GPU the formula is called with the shapes that _cudnn_rnn gets for two LSTM layers, both directions."""
    layer = [(4 * H, X), (4 * H, H), (4 * H,), (4 * H,)]
    later = [(4 * H, 2 * H), (4 * H, H), (4 * H,), (4 * H,)]
    weights = [*layer, *layer, *later, *later]
    forward = by_hand(4, 2, 2)
    assert FORMULAS[aten._cudnn_rnn]((T, B, X), weights, 4, None) == forward
    assert FORMULAS[aten._cudnn_rnn]((T * B, X), weights, 4, None) == forward  # packed
    backward = FORMULAS[aten._cudnn_rnn_backward]
    assert backward((T, B, X), weights, 4, [True, True, True, True]) == 2 * forward
    assert backward((T, B, X), weights, 4, output_mask=[True, True, True, False]) == forward


@pytest.mark.gpu
@pytest.mark.parametrize("cell", GATES)
def test_cudnn_is_counted_on_the_gpu(cell: str) -> None:
    recurrence = getattr(nn, cell)(X, H, 2, batch_first=True, bidirectional=True).cuda()
    x = torch.randn(B, T, X, device="cuda", requires_grad=True)
    forward = by_hand(GATES[cell], 2, 2)
    assert count_flops(lambda: recurrence(x)) == forward
    assert count_flops(lambda: recurrence(x)[0].sum().backward()) == 3 * forward


def test_attention_on_the_cpu_counts_scores_and_weighted_sums() -> None:
    q, k, v = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (T, 9, 9))
    attend = nn.functional.scaled_dot_product_attention
    square = 2 * 3 * T * 9
    assert count_flops(lambda: attend(q, k, v)) == 2 * square * (8 + 8)
    # Backward computes the scores once more and four products.
    assert count_flops(lambda: attend(q, k, v).sum().backward()) == 2 * square * (2 + 5) * 8


def test_products_with_vectors_count() -> None:
    matrix, vector = torch.randn(4, 5), torch.randn(5)
    assert count_flops(lambda: matrix @ vector) == 2 * 4 * 5
    assert count_flops(lambda: torch.addmv(torch.randn(4), matrix, vector)) == 2 * 4 * 5
    assert count_flops(lambda: vector @ vector) == 2 * 5


def test_what_has_no_formula_fails_by_name_unless_one_is_given() -> None:
    matrix = torch.eye(4)
    with pytest.raises(UncountedOperator, match="aten.linalg_cholesky_ex: multiplies matrices and has no formula"):
        count_flops(lambda: torch.linalg.cholesky(matrix))
    formulas = {aten.linalg_cholesky_ex: lambda shape, *_, **__: shape[-1] ** 3 // 3}
    assert count_flops(lambda: torch.linalg.cholesky(matrix), formulas) == 21
    encoder = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    with pytest.raises(UncountedOperator, match="_transformer_encoder_layer_fwd"), torch.no_grad():
        count_flops(lambda: encoder(torch.randn(1, 3, 8)))


def test_pointwise_work_counts_nothing() -> None:
    x = torch.rand(3, 4, requires_grad=True)
    norms = [torch.linalg.vector_norm(x), torch.lgamma(x).sum(), torch.prelu(x, torch.ones(1)).sum()]
    assert count_flops(lambda: (torch.stack(norms).sum() + x.softmax(-1).cumsum(0).sum()).backward()) == 0
    assert not any(
        multiplies(f"aten.{name}") for name in ("rsqrt", "cummax", "gelu_backward", "embedding", "lu_unpack")
    )
    assert all(multiplies(f"aten.{name}") for name in ("_grouped_mm", "miopen_rnn", "_fft_r2c", "mkldnn_linear", "svd"))
    assert multiplies("some_library.scan")
