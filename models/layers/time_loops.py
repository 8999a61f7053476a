"""Loops over time with a backward of their own: sampling from a structured posterior, and an Elman network.

Written out, a step is a handful of kernels without a graph, and the gradient of a weight is one matrix product over all
steps, where autograd would make one for every step and add them up. Measured on one core with 20 series of 116 steps
and width 600, forward and backward: 84 ms instead of 132 for sampling, 124 instead of 174 for the Elman network.
"""

from typing import Any

import torch
from torch import Tensor, nn

from reducible.models.layers.gaussian import SMALLEST_DEVIATION

aten = torch.ops.aten


class SamplingLoop(torch.autograd.Function):
    """apply(read_TBW, noise_TBL, first_L, W_WL, b_W, H_OW, c_O) -> mean_TBL, deviation_TBL, z_TBL; O is 2 L.

        u_t = tanh(W z_t-1 + b)        both_t = (u_t + read_t) / 2        mean_t, raw_t = H both_t + c
        deviation_t = softplus(raw_t) + SMALLEST_DEVIATION                z_t = mean_t + deviation_t noise_t

    (Krishnan, Shalit and Sontag 2017.) All in one dtype, fp32 or wider. Noise gets no gradient.
    """

    @staticmethod
    def forward(
        context: Any, read_TBW: Tensor, noise_TBL: Tensor, first_L: Tensor, W: Tensor, b: Tensor, H: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        T, B, L = noise_TBL.shape
        u_TBW, both_TBW = torch.empty_like(read_TBW), torch.empty_like(read_TBW)
        out_TBO = read_TBW.new_empty(T, B, 2 * L)
        deviation_TBL = read_TBW.new_empty(T, B, L)
        z_SBL = read_TBW.new_empty(T + 1, B, L)  # the first before all steps
        z_SBL[0] = first_L
        W_LW, H_WO = W.t(), H.t()
        latents, outs, mean_TBL, raw_TBL = z_SBL.unbind(), out_TBO.unbind(), out_TBO[..., :L], out_TBO[..., L:]
        steps = zip(
            read_TBW.unbind(),
            noise_TBL.unbind(),
            u_TBW.unbind(),
            both_TBW.unbind(),
            outs,
            mean_TBL.unbind(),
            raw_TBL.unbind(),
            deviation_TBL.unbind(),
            latents[:-1],
            latents[1:],
            strict=True,
        )
        for read, noise, u, both, out, mean, raw, deviation, before, z in steps:
            torch.addmm(b, before, W_LW, out=u).tanh_()
            torch.lerp(u, read, 0.5, out=both)
            torch.addmm(c, both, H_WO, out=out)
            aten.softplus.out(raw, out=deviation).add_(SMALLEST_DEVIATION)
            torch.addcmul(mean, deviation, noise, out=z)
        context.save_for_backward(noise_TBL, u_TBW, both_TBW, raw_TBL, z_SBL, W, H)
        return mean_TBL.contiguous(), deviation_TBL, z_SBL[1:].clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_mean_TBL, to_deviation_TBL, to_z_TBL = gradients
        noise_TBL, u_TBW, both_TBW, raw_TBL, z_SBL, W, H = context.saved_tensors
        T, B, L = noise_TBL.shape
        slope_TBL = raw_TBL.sigmoid()  # of softplus
        to_out_TBO = torch.cat((to_mean_TBL + to_z_TBL, (to_deviation_TBL + to_z_TBL * noise_TBL) * slope_TBL), -1)
        # What a latent's gradient from the step after it adds to that of raw, for each unit.
        slope_TBL = slope_TBL * noise_TBL
        # Both is half of tanh and half of what was read: half of its gradient goes to either.
        to_half_TBW, to_inside_TBW = torch.empty_like(both_TBW), torch.empty_like(u_TBW)
        carry_BL = torch.zeros_like(z_SBL[0])
        means, raws = to_out_TBO[..., :L].unbind(), to_out_TBO[..., L:].unbind()
        steps = zip(
            to_out_TBO.unbind(),
            means,
            raws,
            slope_TBL.unbind(),
            u_TBW.unbind(),
            to_half_TBW.unbind(),
            to_inside_TBW.unbind(),
            strict=True,
        )
        for out, mean, raw, slope, u, to_half, to_inside in reversed(list(steps)):
            mean.add_(carry_BL)
            raw.addcmul_(carry_BL, slope)
            torch.addmm(to_half, out, H, beta=0, alpha=0.5, out=to_half)
            aten.tanh_backward.grad_input(to_half, u, grad_input=to_inside)
            carry_BL = torch.mm(to_inside, W)
        flat_out, flat_inside = to_out_TBO.flatten(0, 1), to_inside_TBW.flatten(0, 1)
        return (
            to_half_TBW,
            None,
            carry_BL.sum(0),
            flat_inside.t() @ z_SBL[:-1].flatten(0, 1),
            flat_inside.sum(0),
            flat_out.t() @ both_TBW.flatten(0, 1),
            flat_out.sum(0),
        )


class Elman(nn.RNN):
    """nn.RNN of one layer with tanh, time first, from a state of zeros; on a CPU faster in training."""

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width)

    def forward(self, x_TBX: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if not x_TBX.is_cpu or state is not None or torch.is_autocast_enabled("cpu"):
            return super().forward(x_TBX, state)
        bias = self.bias_ih_l0 + self.bias_hh_l0
        h_TBW = ElmanLoop.apply(x_TBX, self.weight_ih_l0, self.weight_hh_l0, bias)
        return h_TBW, h_TBW[-1:]


class ElmanLoop(torch.autograd.Function):
    """apply(x_TBX, V, W, b) -> h_TBW with h_t = tanh(V x_t + W h_t-1 + b)."""

    @staticmethod
    def forward(context: Any, x_TBX: Tensor, V: Tensor, W: Tensor, b: Tensor) -> Tensor:
        T, B, _ = x_TBX.shape
        h_SBW = x_TBX.new_empty(T + 1, B, len(W))  # the first before all steps
        h_SBW[0] = 0
        inside_TBW = torch.addmm(b, x_TBX.flatten(0, 1), V.t()).view(T, B, -1)
        states, W_t = h_SBW.unbind(), W.t()
        for inside, before, h in zip(inside_TBW.unbind(), states[:-1], states[1:], strict=True):
            torch.addmm(inside, before, W_t, out=h).tanh_()
        context.save_for_backward(x_TBX, h_SBW, V, W)
        return h_SBW[1:].clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_TBX, h_SBW, V, W = context.saved_tensors
        to_inside_TBW = torch.empty_like(h_SBW[1:])
        carry_BW = torch.zeros_like(h_SBW[0])
        steps = zip(gradients[0].unbind(), h_SBW.unbind()[1:], to_inside_TBW.unbind(), strict=True)
        for to_h, h, to_inside in reversed(list(steps)):
            aten.tanh_backward.grad_input(carry_BW.add_(to_h), h, grad_input=to_inside)
            carry_BW = torch.mm(to_inside, W)
        flat = to_inside_TBW.flatten(0, 1)
        return (
            (flat @ V).view(x_TBX.shape) if context.needs_input_grad[0] else None,
            flat.t() @ x_TBX.flatten(0, 1),
            flat.t() @ h_SBW[:-1].flatten(0, 1),
            flat.sum(0),
        )
