"""The norm at the end of a state space block, as in Mamba-2."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmm4rec.nn.blockwise import blocks_of, plain_cpu


class GatedRMSNorm(nn.Module):
    """RMSNorm(y * SiLU(z)): the gate before the norm, one norm over all channels, a weight and no bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """[..., width] both."""
        if plain_cpu(y):
            normed: Tensor = _Blockwise.apply(y, z, self.weight, self.eps)
            return normed
        gated = y * F.silu(z)
        return F.rms_norm(gated, self.weight.shape, self.weight.to(gated.dtype), self.eps)


class _Blockwise(torch.autograd.Function):
    """The same some rows at a time, so that what is between stays in a processor's caches.

    With s = SiLU(z), r = (mean (y s)^2 + eps)^-1/2 and n = r y s: out = w n, and for its gradient g

        dw = sum g n,    d(y s) = r (w g - n mean(w g n)),    dy = s d(y s),    dz = SiLU'(z) y d(y s).
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
        shape, width = y.shape, y.shape[-1]
        y, z = (v.reshape(-1, width) for v in (y, z))
        out, scale = torch.empty_like(y), y.new_empty(len(y), 1)
        for y_, z_, out_, r in blocks_of(y, z, out, scale):
            gated = torch.ops.aten.silu.out(z_, out=out_).mul_(y_)
            torch.sum(gated.square(), -1, keepdim=True, out=r).div_(width).add_(eps).rsqrt_()
            gated.mul_(r).mul_(weight)
        ctx.save_for_backward(y, z, weight, scale)
        return out.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, z, weight, scale = ctx.saved_tensors
        grad_y, grad_z, grad_weight = torch.empty_like(y), torch.empty_like(z), torch.zeros_like(weight)
        for y_, z_, r, g, gy, gz in blocks_of(y, z, scale, grad.reshape(y.shape), grad_y, grad_z):
            s = F.silu(z_)
            n = (y_ * s).mul_(r)
            gn = g * n
            grad_weight += gn.sum(0)
            along = (gn @ weight)[:, None] / y.shape[1]
            of_gated = torch.mul(g, weight, out=gn).addcmul_(n, along, value=-1).mul_(r)
            torch.mul(of_gated, s, out=gy)
            torch.ops.aten.silu_backward.grad_input(of_gated.mul_(y_), z_, grad_input=gz)
        return grad_y.view(grad.shape), grad_z.view(grad.shape), grad_weight, None
