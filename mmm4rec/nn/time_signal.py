"""The time signal of MMM4Rec and TiM4Rec (eq. 6-9): from timestamps to a factor on each step of the recurrence.

Shapes: B rows, H heads, L <= max_length positions. A signal T is [B, H, L]; a shorter one than max_length stands for
one that is 0 beyond, which takes no more of the maps that mix positions than their first L rows and columns.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmm4rec.nn.conv import CausalConv
from mmm4rec.nn.dropout import Dropout


@dataclass(frozen=True)
class TimeMask:
    """Where a batch has time.

    Attributes:
        real: [B, 1, L] bool, positions that hold an item. Statistics are taken over these alone, and a signal is 0
            elsewhere. None: padded positions count like any other, all max_length of them, as in the released code.
        known: [B, 1, 1] bool, rows whose events all have timestamps; the others get the factor 1. None: all have.
    """

    real: Tensor | None
    known: Tensor | None

    def repeat(self, times: int) -> "TimeMask":
        """The mask of the same rows ``times`` times, one after the other."""
        return TimeMask(*(None if v is None else v.repeat(times, 1, 1) for v in (self.real, self.known)))


class TimeNorm(nn.Module):
    """LayerNorm over the positions of a signal [..., L], with affine weights of size max_length."""

    def __init__(self, length: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(length))
        self.bias = nn.Parameter(torch.zeros(length))
        self.eps = eps

    def forward(self, signal: Tensor, real: Tensor | None) -> Tensor:
        """Normalise; with ``real`` [..., L] over its positions alone, leaving 0 elsewhere."""
        if real is None:
            return F.layer_norm(signal, self.weight.shape, self.weight, self.bias, self.eps)
        count = real.sum(-1, keepdim=True)
        centred = (signal - (signal * real).sum(-1, keepdim=True) / count) * real
        variance = centred.square().sum(-1, keepdim=True) / count
        weight, bias = (v[: signal.shape[-1]] for v in (self.weight, self.bias))
        return (centred * torch.rsqrt(variance + self.eps) * weight + bias) * real


class TimeGaps(nn.Module):
    """T = LN_L(drop(g)), g_1 = 0, g_k = t_k - t_{k-1}: the signal the first layer gets (eq. 6)."""

    def __init__(self, length: int, heads: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = TimeNorm(length, eps)
        self.drop = Dropout(dropout)

    def forward(self, times: Tensor, mask: TimeMask) -> Tensor:
        """T [B, H, L] of ``times`` [B, L] int64 seconds; the heads are alike."""
        gaps = torch.diff(times, dim=1, prepend=times[:, :1]).to(self.norm.weight.dtype)[:, None]
        if mask.real is not None:
            gaps = gaps * mask.real
        return self.norm(self.drop(gaps), mask.real).expand(-1, self.heads, -1)


class TimeFactor(nn.Module):
    """T' = SiLU(conv_2(SiLU(conv_1(T * s)))), s = Tanhshrink(W_b SiLU(W_a drop(T) + b_a) + b_b) (eq. 7-8).

    Without ``shrink`` there is no Tanhshrink, as in TiM4Rec.
    """

    def __init__(self, length: int, heads: int, width: int, dropout: float, *, shrink: bool = True) -> None:
        super().__init__()
        self.shrink = shrink
        self.drop = Dropout(dropout)
        self.scale_in = nn.Linear(length, length)
        self.scale_out = nn.Linear(length, length)
        self.conv_1 = CausalConv(heads, width)
        self.conv_2 = CausalConv(heads, width)

    def forward(self, signal: Tensor) -> Tensor:
        """T' [B, L, H] of T [B, H, L]. Its padded positions hold numbers that no real position depends on."""
        # every position of scale_in's result is needed, of which each of the L wanted ones of scale_out is a mixture
        length = signal.shape[-1]
        scale = F.linear(self.drop(signal), self.scale_in.weight[:, :length], self.scale_in.bias)
        scale = F.linear(F.silu(scale), self.scale_out.weight[:length], self.scale_out.bias[:length])
        if self.shrink:
            scale = F.tanhshrink(scale)
        return self.conv_2(self.conv_1((signal * scale).transpose(1, 2)))


def start_scales_(model: nn.Module, bias: float) -> None:
    """Start the scale s of every ``TimeFactor`` of a model near ``bias`` (near Tanhshrink(bias) where it shrinks).

    From a bias of zero s is some 1e-3, with Tanhshrink 1e-10: gaps hardly reach a step size, and most gradients of the
    time path are below the optimiser's epsilon of 1e-8.
    """
    for module in model.modules():
        if isinstance(module, TimeFactor):
            nn.init.constant_(module.scale_out.bias, bias)


class NextTime(nn.Module):
    """T_next = LN_L(q * T + (1 - q) * T'), q = sigmoid(w drop(T) + b), one scalar a head (eq. 9).

    With ``per_position`` q is a number a position, as in TiM4Rec: W [L, L] takes the place of w.
    """

    def __init__(self, length: int, dropout: float, eps: float, *, per_position: bool = False) -> None:
        super().__init__()
        self.drop = Dropout(dropout)
        self.gate = nn.Linear(length, length if per_position else 1)
        self.norm = TimeNorm(length, eps)

    def forward(self, signal: Tensor, factor: Tensor, mask: TimeMask) -> Tensor:
        """T_next [B, H, L] of T [B, H, L] and T' [B, L, H]."""
        length = signal.shape[-1]
        gate = F.linear(self.drop(signal), self.gate.weight[:length, :length], self.gate.bias[:length])
        gate = torch.sigmoid(gate).to(signal.dtype)
        factor = factor.transpose(1, 2)
        return self.norm(factor + gate * (signal - factor), mask.real)
