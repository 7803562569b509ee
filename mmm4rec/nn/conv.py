"""Causal depthwise convolution with SiLU, as in Mamba."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CACHED = 2**18  # numbers


class CausalConv(nn.Module):
    """SiLU(b + sum_{j=0..K-1} w_j x_{i-K+1+j}) for each channel, zeros before the first position.

    Weight [C, K], its last column meets the current position. Initialised as ``torch.nn.Conv1d``.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [B, L, C] over L."""
        return _ShiftedSums.apply(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

    def last(self, window: Tensor) -> Tensor:
        """The result [B, C] at one position, from the K positions [B, K, C] that end there."""
        return F.silu((window * self.weight.T).sum(1) + self.bias)


class _ShiftedSums(torch.autograd.Function):
    """The convolution as K multiply-adds in place.

    ``torch.nn.functional.conv1d`` with a group a channel wants channels first and takes three to ten times as long on a
    CPU for rows this short; the same sums under autograd keep K intermediates.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        taps = weight.T.contiguous()
        y = torch.addcmul(bias, x, taps[-1])
        for shift in range(1, min(len(taps), x.shape[1])):
            y[:, shift:].addcmul_(x[:, :-shift], taps[-1 - shift])
        ctx.save_for_backward(x, taps, y)
        return F.silu(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, taps, y = ctx.saved_tensors
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        grad_taps = torch.zeros_like(taps, dtype=torch.promote_types(taps.dtype, torch.float32))
        grad_bias = torch.zeros_like(grad_taps[0])
        # On a CPU in blocks of rows that fit its cache: the passes below are bound by memory.
        block = len(x) if x.is_cuda else max(1, CACHED // x[0].numel())
        for g, x_part, y_part, gx in zip(*(v.split(block) for v in (grads[0], x, y, grad_x)), strict=True):
            g = torch.ops.aten.silu_backward(g, y_part)
            torch.mul(g, taps[-1], out=gx)
            grad_bias += g.sum((0, 1))
            grad_taps[-1] += (g * x_part).sum((0, 1))
            for shift in range(1, min(len(taps), x.shape[1])):
                gx[:, :-shift].addcmul_(g[:, shift:], taps[-1 - shift])
                grad_taps[-1 - shift] += (g[:, shift:] * x_part[:, :-shift]).sum((0, 1))
        return grad_x, grad_taps.T.to(taps.dtype), grad_bias.to(taps.dtype)
