"""Cross entropy of an output layer, taken without ever holding all logits where that is faster (on a CPU)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.models.layers.device_kind import device_kind
from reducible.models.loss import IGNORE, Loss

CHUNKED = hasattr(nn, "LinearCrossEntropyOptions")
"""Whether torch has the operator that does so, from 2.13 on; a GPU is served without it."""

CHUNK = 512
"""Targets whose logits exist at once on a CPU: with 10,000 tokens 20 MB, which caches still help with."""


def output_loss(x_BTD: Tensor, weight_VD: Tensor, targets_BT: Tensor, smoothing: float = 0.0) -> Loss:
    """Sum of nats of the targets under softmax(x W^T), in fp32; targets that are IGNORE cost nothing on a CPU.

    With label smoothing the target is the given token with probability 1 - smoothing, else any token, all alike
    (Szegedy et al. 2016). That loss is cross entropy + smoothing (x w_target - x mean(w)): two inner products a
    target, whatever the vocabulary. `parts` then has the plain cross entropy.

    On a CPU torch's chunked operator makes the gradients chunk by chunk along with the loss: at 10,000 tokens and width
    128 that takes 0.6 times as long as logits and F.cross_entropy. It cannot be compiled and does not autocast. On
    a GPU picking out the targets would make the host wait for the device.
    """
    units = (targets_BT != IGNORE).sum()
    x_ND, targets_N = x_BTD.flatten(0, -2), targets_BT.flatten()
    alone = not torch.compiler.is_compiling() and device_kind(x_ND) == "cpu"
    if alone:
        real_N = targets_N != IGNORE
        x_ND, targets_N = x_ND[real_N], targets_N[real_N]
    if CHUNKED and alone and x_ND.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        chunked = nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
        nats = F.linear_cross_entropy(x_ND, weight_VD, targets_N, reduction="sum", options=chunked)
    else:
        logits_NV = F.linear(x_ND, weight_VD).float()
        nats = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORE, reduction="sum")
    if not smoothing:
        return Loss(nats, units, {})
    real_N = targets_N != IGNORE
    toward_ND = F.embedding(targets_N.clamp(min=0), weight_VD) - weight_VD.mean(0)
    surplus_N = (x_ND.float() * toward_ND.float()).sum(-1)
    return Loss(nats + smoothing * (surplus_N * real_N).sum(), units, {"cross_entropy": nats.detach()})
