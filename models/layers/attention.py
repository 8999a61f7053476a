"""Scaled dot-product attention as the paper states it (Vaswani et al. 2017, sections 3.2.1 and 3.2.2).

This is the definition that fast kernels are tested against, and the one to read. Masks are bool and True where a query
may look. Axes: B batch, H heads, T queries, S keys, K size of a key, V size of a value, D width.
"""

import math

import torch
from torch import Tensor


def attention(q_TK: Tensor, k_SK: Tensor, v_SV: Tensor, mask_TS: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, over any leading axes (equation 1). A query that may look nowhere gets zeros."""
    scores_TS = q_TK @ k_SK.transpose(-2, -1) / math.sqrt(q_TK.shape[-1])
    if mask_TS is None:
        return torch.softmax(scores_TS, dim=-1) @ v_SV
    weights_TS = torch.softmax(scores_TS.masked_fill(~mask_TS, -torch.inf), dim=-1)
    return weights_TS.masked_fill(~mask_TS.any(-1, keepdim=True), 0.0) @ v_SV


def multi_head_attention(
    x_BTD: Tensor,
    memory_BSD: Tensor,
    w_query_DD: Tensor,
    w_key_DD: Tensor,
    w_value_DD: Tensor,
    w_out_DD: Tensor,
    heads: int,
    mask: Tensor | None = None,
) -> Tensor:
    """Heads attend side by side, each on its slice of the width, and w_out mixes them.

    Weights are laid out as in nn.Linear (out, in). For self-attention the memory is x. The mask has the shape (T, S),
    or (B, T, S), or (B, 1, S) for padding.
    """

    def split(y_BTD: Tensor) -> Tensor:
        return y_BTD.unflatten(-1, (heads, -1)).transpose(-3, -2)

    q_BHTK = split(x_BTD @ w_query_DD.T)
    k_BHSK = split(memory_BSD @ w_key_DD.T)
    v_BHSV = split(memory_BSD @ w_value_DD.T)
    if mask is not None and mask.ndim == 3:
        mask = mask[:, None]
    y_BHTV = attention(q_BHTK, k_BHSK, v_BHSV, mask)
    return y_BHTV.transpose(-3, -2).flatten(-2) @ w_out_DD.T


def causal_mask(queries: int, keys: int | None = None, device: torch.device | None = None) -> Tensor:
    """(T, S): query t sees keys up to its own position; more keys than queries are its past."""
    keys = queries if keys is None else keys
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def padding_mask(lengths_B: Tensor, keys: int) -> Tensor:
    """(B, 1, S): the first lengths[b] keys of row b are real."""
    return (torch.arange(keys, device=lengths_B.device) < lengths_B[:, None])[:, None]


def document_mask(documents_BT: Tensor) -> Tensor:
    """(B, 1, T, T), with an axis for heads: position t sees s <= t of its own document."""
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return (same_BTT & causal_mask(documents_BT.shape[1], device=documents_BT.device))[:, None]
