"""Causal depthwise convolution with SiLU, as in Mamba."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmm4rec.nn import triton_support
from mmm4rec.nn.blockwise import blocks_of, plain_cpu


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

    def split_projected(
        self, u: Tensor, project: nn.Linear, parts: Sequence[int], convolved: slice
    ) -> tuple[Tensor, ...]:
        """``split`` of project(u) for u [B, L, D].

        On a CPU each part has a product of its own, forward and back, so that nothing is gathered or copied, and the
        map's bias is added within the convolution.
        """
        if plain_cpu(u):
            bias, weights = project.bias, (self.weight, self.bias)
            outputs: tuple[Tensor, ...] = _ProjectedSplit.apply(u, project.weight, bias, *weights, parts, convolved)
            return outputs
        return self.split(project(u), parts, convolved)

    def last(self, window: Tensor) -> Tensor:
        """The result [B, C] at one position, from the last K positions up to it, or all of fewer: [B, K, C]."""
        return F.silu((window * self.weight.T[-window.shape[1] :]).sum(1) + self.bias)


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
        ctx.channels, _ = _channels(parts, convolved)
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


class _ProjectedSplit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        map_weight: Tensor,
        map_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        parts: Sequence[int],
        convolved: slice,
    ) -> tuple[Tensor, ...]:
        flat = u.reshape(-1, u.shape[-1])
        ctx.parts, ctx.convolved, ctx.shape = tuple(parts), convolved, u.shape
        ctx.channels, others = _channels(ctx.parts, convolved)
        x = (flat @ map_weight[ctx.channels].T).view(*u.shape[:2], -1)
        y, saved = ShiftedSums.forward(x, weight, bias, map_bias[ctx.channels])
        ctx.save_for_backward(flat, map_weight, *saved)
        outputs: list[Tensor | None] = [None] * len(parts)
        outputs[convolved] = y.split(ctx.parts[convolved], -1)
        for part, of_part in others.items():
            outputs[part] = torch.addmm(map_bias[of_part], flat, map_weight[of_part].T).view(*u.shape[:2], -1)
        return tuple(cast("list[Tensor]", outputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, map_weight, *saved = ctx.saved_tensors
        grad_map, grad_bias = torch.empty_like(map_weight), map_weight.new_empty(len(map_weight))
        grad_x = torch.empty_like(saved[0])
        *of_weights, grad_bias[ctx.channels] = ShiftedSums.backward(saved, grads[ctx.convolved], grad_x)
        grad_u = grad_x.flatten(0, 1) @ map_weight[ctx.channels]
        torch.mm(grad_x.flatten(0, 1).T, flat, out=grad_map[ctx.channels])
        for part, of_part in _channels(ctx.parts, ctx.convolved)[1].items():
            grad = grads[part].flatten(0, 1)
            torch.addmm(grad_u, grad, map_weight[of_part], out=grad_u)  # torch's counter knows no addmm_
            torch.mm(grad.T, flat, out=grad_map[of_part])
            torch.sum(grad, 0, out=grad_bias[of_part])
        return grad_u.view(ctx.shape), grad_map, grad_bias, *of_weights, None, None


def _channels(parts: Sequence[int], convolved: slice) -> tuple[slice, dict[int, slice]]:
    """The channels that are convolved, and those of each other part."""
    ends = list(accumulate(parts))
    each = {part: slice(end - width, end) for part, (width, end) in enumerate(zip(parts, ends, strict=True))}
    inside = [each.pop(part) for part in range(len(parts))[convolved]]
    return slice(inside[0].start, inside[-1].stop), each


class ShiftedSums:
    """The convolution as K multiply-adds in place.

    ``torch.nn.functional.conv1d`` with a group a channel wants channels first and takes three to ten times as long on a
    CPU for rows this short; the same sums under autograd keep K intermediates.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Convolve x [B, L, C], or x + added [C]: the result, and what ``backward`` needs, x first."""
        taps, offset = weight.T.to(x.dtype).contiguous(), bias.to(x.dtype)
        y, out = (x.new_empty(x.shape) for _ in range(2))
        if added is not None:  # it meets as many taps as there are positions before
            met = taps.flip(0).cumsum(0)[torch.arange(x.shape[1]).clamp(max=len(taps) - 1)]
            offset = offset + added * met
        for some, y_part, out_part in blocks_of(x, y, out):
            torch.addcmul(offset, some, taps[-1], out=y_part)
            for shift in range(1, min(len(taps), x.shape[1])):
                y_part[:, shift:].addcmul_(some[:, :-shift], taps[-1 - shift])
            torch.ops.aten.silu.out(y_part, out=out_part)
        return out, (x, taps, y) if added is None else (x, taps, y, added)

    @staticmethod
    def backward(saved: Sequence[Tensor], grads: Sequence[Tensor], grad_x: Tensor) -> tuple[Tensor, ...]:
        """Write the gradient of x; grads are the result's, in parts of its channels.

        Gives those of weight, bias and, if there was one, ``added``.
        """
        mixed, taps, y, *added = saved
        grad_taps = torch.zeros_like(taps, dtype=torch.promote_types(taps.dtype, torch.float32))
        sums = grad_taps.new_zeros(y.shape[1:])  # of the gradient before SiLU, a position
        widths = [grad.shape[-1] for grad in grads]
        shifts = range(min(len(taps), y.shape[1]))
        for x, y_part, gx, *given in blocks_of(mixed, y, grad_x, *grads):
            g = torch.empty_like(y_part)
            for into, y_given, g_given in zip(g.split(widths, -1), y_part.split(widths, -1), given, strict=True):
                torch.ops.aten.silu_backward.grad_input(g_given, y_given, grad_input=into)
            torch.mul(g, taps[-1], out=gx)
            sums += g.sum(0)
            grad_taps[-1] += (g * x).sum((0, 1))
            for shift in shifts[1:]:
                gx[:, :-shift].addcmul_(g[:, shift:], taps[-1 - shift])
                grad_taps[-1 - shift] += (g[:, shift:] * x[:, :-shift]).sum((0, 1))
        if not added:
            return grad_taps.T, sums.sum(0)
        met = torch.stack([sums[shift:].sum(0) for shift in reversed(range(len(taps)))])  # what each tap met of it
        return (grad_taps + added[0] * met).T, met[-1], (taps * met).sum(0)
