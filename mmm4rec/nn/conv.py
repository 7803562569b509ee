"""Causal depthwise convolution with SiLU, as in Mamba."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        return F.silu(_ShiftedSums.apply(x, self.weight.to(x.dtype), self.bias.to(x.dtype)))

    def last(self, window: Tensor) -> Tensor:
        """The result [B, C] at one position, from the K positions [B, K, C] that end there."""
        return F.silu((window * self.weight.T).sum(1) + self.bias)


class _ShiftedSums(torch.autograd.Function):
    """The convolution as K multiply-adds in place.

    ``torch.nn.functional.conv1d`` with as many groups as channels wants channels first and takes three to ten times as
    long on a CPU for rows this short; the same sums under autograd keep K intermediates.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        taps = weight.T.contiguous()
        y = torch.addcmul(bias, x, taps[-1])
        for shift in range(1, min(len(taps), x.shape[1])):
            y[:, shift:].addcmul_(x[:, :-shift], taps[-1 - shift])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        taps = weight.T.contiguous()
        grad_x, grad_taps = grad * taps[-1], torch.zeros_like(taps)
        grad_taps[-1] = (grad * x).sum((0, 1))
        for shift in range(1, min(len(taps), x.shape[1])):
            grad_x[:, :-shift].addcmul_(grad[:, shift:], taps[-1 - shift])
            grad_taps[-1 - shift] = (grad[:, shift:] * x[:, :-shift]).sum((0, 1))
        return grad_x, grad_taps.T, grad.sum((0, 1))
