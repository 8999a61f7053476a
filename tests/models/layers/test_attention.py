"""Attention as stated equals torch's fused kernel, and a loop over queries and keys."""

import math

import pytest
import torch
import torch.nn.functional as F

from reducible.models.layers.attention import attention, causal_mask, document_mask, multi_head_attention, padding_mask


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def by_hand(q, k, v, mask):
    """Equation 1 with Python's loops and math.exp: shares no code with either."""
    out = torch.zeros(len(q), v.shape[1], dtype=torch.float64)
    for t in range(len(q)):
        seen = [s for s in range(len(k)) if mask is None or mask[t, s]]
        weights = [
            math.exp(sum(float(a * b) for a, b in zip(q[t], k[s], strict=True)) / len(q[t]) ** 0.5) for s in seen
        ]
        for weight, s in zip(weights, seen, strict=True):
            out[t] += weight / sum(weights) * v[s]
    return out


MASKS = {
    "none": lambda: None,
    "causal": lambda: causal_mask(5, 7),
    "random": lambda: torch.rand(5, 7) < 0.5,
    "nothing to see": lambda: torch.arange(35).view(5, 7) >= 7,
}


@pytest.mark.parametrize("mask", MASKS)
def test_single_head_equals_the_definition_and_sdpa(mask):
    q, k, v, mask = numbers(5, 4), numbers(7, 4), numbers(7, 3), MASKS[mask]()
    result = attention(q, k, v, mask)
    torch.testing.assert_close(result, by_hand(q, k, v, mask), rtol=1e-12, atol=1e-12)
    fused = F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None], attn_mask=mask)[0, 0]
    torch.testing.assert_close(result, fused, rtol=1e-12, atol=1e-12)


def test_the_causal_mask_is_sdpas():
    q, k, v = numbers(2, 3, 6, 4), numbers(2, 3, 6, 4), numbers(2, 3, 6, 4)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attention(q, k, v, causal_mask(6)), fused, rtol=1e-12, atol=1e-12)


def test_multi_head_equals_torchs_module_with_padding():
    D, heads, lengths = 12, 3, torch.tensor([7, 4])
    x, memory = numbers(2, 5, D), numbers(2, 7, D)
    module = torch.nn.MultiheadAttention(D, heads, bias=False, batch_first=True, dtype=torch.float64)
    w_query, w_key, w_value = module.in_proj_weight.chunk(3)
    mask = padding_mask(lengths, 7)
    ours = multi_head_attention(x, memory, w_query, w_key, w_value, module.out_proj.weight, heads, mask)
    theirs, _ = module(x, memory, memory, key_padding_mask=~mask[:, 0])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    shorter = multi_head_attention(x[1:], memory[1:, :4], w_query, w_key, w_value, module.out_proj.weight, heads)
    torch.testing.assert_close(ours[1:], shorter, rtol=1e-12, atol=1e-12)


def test_one_head_of_many_is_single_head_attention():
    D = 6
    x, w = numbers(1, 5, D), [numbers(D, D) for _ in range(3)]
    many = multi_head_attention(x, x, *w, torch.eye(D, dtype=torch.float64), 3, causal_mask(5))
    single = attention(x[0] @ w[0][2:4].T, x[0] @ w[1][2:4].T, x[0] @ w[2][2:4].T, causal_mask(5))
    torch.testing.assert_close(many[0, :, 2:4], single, rtol=1e-12, atol=1e-12)


def test_the_document_mask_is_causal_inside_each_document():
    documents = torch.tensor([[0, 0, 1, 1, 2]])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert document_mask(documents).int()[0, 0].tolist() == expected
