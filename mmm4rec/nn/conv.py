"""Causal depthwise convolution with SiLU, as in Mamba."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmm4rec.nn import triton_support

CACHED = 2**18  # numbers that a cache of a processor holds


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
        return self.split(x, (x.shape[-1],), slice(1))[0]

    def split(self, x: Tensor, parts: Sequence[int], convolved: slice) -> tuple[Tensor, ...]:
        """Split x [B, L, sum of parts] over its channels; the parts ``convolved``, C channels in all, are convolved.

        Backward, a gradient of x is written once, where splitting x and what is convolved would gather it twice.
        On a GPU that runs them, fused kernels do it.
        """
        kernels = triton_support.kernels("conv_triton", x.device)
        fused = kernels is not None and kernels.fits(x, self.weight) and kernels.starts(x, self.weight, self.bias)
        return convolve(x, self.weight, self.bias, parts, convolved, kernels if fused else ShiftedSums)

    def last(self, window: Tensor) -> Tensor:
        """The result [B, C] at one position, from the K positions [B, K, C] that end there."""
        return F.silu((window * self.weight.T).sum(1) + self.bias)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, parts: Sequence[int], convolved: slice, form: Any
) -> tuple[Tensor, ...]:
    """``CausalConv.split`` by one form of the convolution: ``ShiftedSums`` or `mmm4rec.nn.conv_triton`."""
    outputs: tuple[Tensor, ...] = _Split.apply(x, weight, bias, tuple(parts), convolved, form)
    return outputs


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, parts: tuple[int, ...], convolved: slice, form: Any
    ) -> tuple[Tensor, ...]:
        start = sum(parts[: convolved.start or 0])
        ctx.channels = slice(start, start + len(bias))
        y, saved = form.forward(x[..., ctx.channels], weight, bias)
        ctx.save_for_backward(*saved)
        ctx.parts, ctx.convolved, ctx.form = parts, convolved, form
        outputs = list(x.split(parts, -1))
        outputs[convolved] = y.split(parts[convolved], -1)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mixed = ctx.saved_tensors[0]
        grad = torch.empty(*mixed.shape[:2], sum(ctx.parts), dtype=mixed.dtype, device=mixed.device)
        for part, of_part in enumerate(grad.split(ctx.parts, -1)):
            if part not in range(len(grads))[ctx.convolved]:
                of_part.copy_(grads[part])
        of_weights = ctx.form.backward(ctx.saved_tensors, grads[ctx.convolved], grad[..., ctx.channels])
        return grad, *of_weights, None, None, None


class ShiftedSums:
    """The convolution as K multiply-adds in place.

    ``torch.nn.functional.conv1d`` with a group a channel wants channels first and takes three to ten times as long on a
    CPU for rows this short; the same sums under autograd keep K intermediates.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Convolve x [B, L, C]: the result, and what ``backward`` needs, x first."""
        taps, offset = weight.T.to(x.dtype).contiguous(), bias.to(x.dtype)
        y, out = (x.new_empty(x.shape) for _ in range(2))
        for some, y_part, out_part in zip(*(v.split(_block(x)) for v in (x, y, out)), strict=True):
            torch.addcmul(offset, some, taps[-1], out=y_part)
            for shift in range(1, min(len(taps), x.shape[1])):
                y_part[:, shift:].addcmul_(some[:, :-shift], taps[-1 - shift])
            torch.ops.aten.silu.out(y_part, out=out_part)
        return out, (x, taps, y)

    @staticmethod
    def backward(saved: tuple[Tensor, ...], grads: Sequence[Tensor], grad_x: Tensor) -> tuple[Tensor, Tensor]:
        """Write the gradient of x; grads are the result's, in parts of its channels. Gives those of weight and bias."""
        mixed, taps, y = saved
        grad_taps = torch.zeros_like(taps, dtype=torch.promote_types(taps.dtype, torch.float32))
        grad_bias = torch.zeros_like(grad_taps[0])
        widths = [grad.shape[-1] for grad in grads]
        blocks = (v.split(_block(y)) for v in (mixed, y, grad_x, *grads))
        for x, y_part, gx, *given in zip(*blocks, strict=True):
            g = torch.empty_like(y_part)
            for into, y_given, g_given in zip(g.split(widths, -1), y_part.split(widths, -1), given, strict=True):
                torch.ops.aten.silu_backward.grad_input(g_given, y_given, grad_input=into)
            torch.mul(g, taps[-1], out=gx)
            grad_bias += g.sum((0, 1))
            grad_taps[-1] += (g * x).sum((0, 1))
            for shift in range(1, min(len(taps), x.shape[1])):
                gx[:, :-shift].addcmul_(g[:, shift:], taps[-1 - shift])
                grad_taps[-1 - shift] += (g[:, shift:] * x[:, :-shift]).sum((0, 1))
        return grad_taps.T, grad_bias


def _block(x: Tensor) -> int:
    """Rows of x [B, L, C] to take at a time: on a CPU what its cache holds, for each pass goes over all of them."""
    return len(x) if x.device.type != "cpu" else max(1, CACHED // max(1, x.shape[1] * x.shape[2]))
