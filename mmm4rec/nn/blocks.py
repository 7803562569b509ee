"""The blocks of MMM4Rec: feed-forward network, time-aware state space duality (TiSSD) and its cross form (TiCoSSD).

Shapes: B rows, L positions of the item path and L' of the time signals (L, or max_length where padding counts), d model
width, E = H * P inner width of H heads of P, n state size. An E-wide vector is H heads of P in order; B and C of the
recurrence are groups of n in order, one a head or one for all. Items lie on the left, padding on the right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmm4rec.nn.conv import CausalConv
from mmm4rec.nn.dropout import Dropout
from mmm4rec.nn.gated_norm import GatedRMSNorm
from mmm4rec.nn.initialise import step_bias
from mmm4rec.nn.ssd import Method, ssd, ssd_last
from mmm4rec.nn.time_signal import NextTime, TimeFactor, TimeMask


class FeedForward(nn.Module):
    """FFN(v) = LN(v + drop(W2 drop(act(W1 v)))), act Hardswish unless said otherwise."""

    def __init__(
        self,
        width: int,
        inner: int,
        dropout: float,
        eps: float,
        activation: Callable[[Tensor], Tensor] = F.hardswish,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.inner = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)
        self.drop = Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, v: Tensor) -> Tensor:
        """[..., width] to the same."""
        return self.norm(v + self.drop(self.out(self.drop(self.activation(self.inner(v))))))


class StepSize(nn.Module):
    """dt = softplus(delta * T' + dt_bias); without time T' = 1 (eq. 8)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.dt_bias = nn.Parameter(step_bias(heads))

    def forward(self, delta: Tensor, factor: Tensor | None, mask: TimeMask) -> Tensor:
        """Step sizes dt [B, L, H] of delta [B, L, H] and T' [B, L', H]."""
        if factor is not None:
            factor = factor[:, : delta.shape[1]]
            if mask.known is not None:
                factor = torch.where(mask.known, factor, 1)
            delta = delta * factor
        return F.softplus(delta + self.dt_bias)


@dataclass(frozen=True)
class SSDSizes:
    """Sizes and switches of a TiSSD or TiCoSSD block.

    Attributes:
        width: d.
        heads: H.
        head_size: P; the inner width is H * P.
        state_size: n.
        conv_width: K, of all causal convolutions.
        max_length: most positions of a row.
        timed: with a time signal; else dt = softplus(delta + dt_bias).
        dropout: within the time maps.
        skip: what D acts on, ``x`` (Mamba-2) or ``dt_x``, dt * x (the released code).
        method: form of the recurrence, see `mmm4rec.nn.ssd`.
        eps: of the norms.
        groups: of B and C: as many as heads (None), or 1.
        shrink: with Tanhshrink in the time factor.
        gate_per_position: the residual gate of time signals has a number a position.
    """

    width: int
    heads: int
    head_size: int
    state_size: int
    conv_width: int
    max_length: int
    timed: bool
    dropout: float
    eps: float
    skip: Literal["x", "dt_x"] = "x"
    method: Method = "auto"
    groups: int | None = None
    shrink: bool = True
    gate_per_position: bool = False

    @property
    def inner(self) -> int:
        """E."""
        return self.heads * self.head_size

    @property
    def states(self) -> int:
        """Width of B and of C."""
        return (self.groups or self.heads) * self.state_size


class SSDHeads(nn.Module):
    """What TiSSD and TiCoSSD share: step sizes, the recurrence over heads, its skip, gate, norm and output map."""

    def __init__(self, sizes: SSDSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.A_log = nn.Parameter(torch.empty(sizes.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(sizes.heads))
        self.step = StepSize(sizes.heads)
        self.norm = GatedRMSNorm(sizes.inner, sizes.eps)
        self.out = nn.Linear(sizes.inner, sizes.width)

    def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor, last: Tensor | None = None) -> Tensor:
        """Apply them.

        Args:
            x: [B, L, E].
            dt: [B, L, H].
            B: [B, L, groups * n].
            C: [B, L, groups * n]; with ``last`` [B, groups * n], at that position.
            z: [B, L, E]; with ``last`` [B, E], at that position.
            last: [B] int64, the one position wanted; None for all.

        Returns:
            [B, L, d]; with ``last`` [B, d].
        """
        a = -torch.exp(self.A_log)
        skip = self.D * dt if self.sizes.skip == "dt_x" else self.D
        x = x.unflatten(-1, (-1, self.sizes.head_size))
        B, C = (v.unflatten(-1, (-1, self.sizes.state_size)) for v in (B, C))
        if last is None:
            y = ssd(x, dt, a, B, C, skip, method=self.sizes.method)
        else:
            y = ssd_last(x, dt, a, B, C, last, skip)
        return self.out(self.norm(y.flatten(-2), z))


class TiSSD(nn.Module):
    """Time-aware state space duality (eq. 3-9), without its residual.

    Without ``next_signal`` it makes no signal for a layer after it.
    """

    def __init__(self, sizes: SSDSizes, *, next_signal: bool = True) -> None:
        super().__init__()
        self.parts = (sizes.inner, sizes.inner, sizes.states, sizes.states, sizes.heads)  # z, x, B, C, delta
        self.project = nn.Linear(sizes.width, sum(self.parts))
        self.conv = CausalConv(sum(self.parts[1:4]), sizes.conv_width)
        self.heads = SSDHeads(sizes)
        self.next_time = None
        if sizes.timed:
            length, dropout = sizes.max_length, sizes.dropout
            self.factor = TimeFactor(length, sizes.heads, sizes.conv_width, dropout, shrink=sizes.shrink)
            if next_signal:
                self.next_time = NextTime(length, dropout, sizes.eps, per_position=sizes.gate_per_position)

    def forward(
        self, u: Tensor, signal: Tensor | None, mask: TimeMask, last: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the positions of u.

        Args:
            u: [B, L, d].
            signal: T [B, H, L']; None without time.
            mask: which positions and rows have time.
            last: [B] int64, the one position wanted; None for all.

        Returns:
            [B, L, d], with ``last`` [B, d]; and T_next [B, H, L'] (None without time or ``next_signal``).
        """
        z, x, B, C, delta = self.conv.split_projected(u, self.project, self.parts, slice(1, 4))
        factor = None if signal is None else self.factor(signal)
        dt = self.heads.step(delta, factor, mask)
        if last is not None:
            row = torch.arange(len(last), device=last.device)
            C, z = C[row, last], z[row, last]
        out = self.heads(x, dt, B, C, z, last)
        if signal is None or self.next_time is None:
            return out, None
        return out, self.next_time(signal, factor, mask)


class TiCoSSD(nn.Module):
    """Cross state space duality (eq. 16-18): the image stream asks (C), the text stream answers (x, B, dt)."""

    def __init__(self, sizes: SSDSizes) -> None:
        super().__init__()
        self.conv_width = sizes.conv_width
        self.parts = (sizes.inner, sizes.states, sizes.heads)  # x, B, delta
        self.project_value = nn.Linear(sizes.width, sum(self.parts))
        self.project_query = nn.Linear(sizes.width, sizes.states)
        self.project_gate = nn.Linear(sizes.width, sizes.inner)
        self.conv_value = CausalConv(sum(self.parts[:2]), sizes.conv_width)
        self.conv_query = CausalConv(sizes.states, sizes.conv_width)
        self.heads = SSDHeads(sizes)
        if sizes.timed:
            self.factor = TimeFactor(sizes.max_length, sizes.heads, sizes.conv_width, sizes.dropout)

    def forward(
        self, query: Tensor, value: Tensor, signal: Tensor | None, mask: TimeMask, last: Tensor | None = None
    ) -> Tensor:
        """Fuse the two streams.

        Args:
            query: [B, L, d], the image stream.
            value: [B, L, d], the text stream.
            signal: T_co [B, H, L']; None without time.
            mask: which rows have time.
            last: [B] int64, the one position wanted; None for all. What other positions do not contribute to it is
                then left out; the result is the same.

        Returns:
            [B, L, d]; with ``last`` [B, d].
        """
        x, B, delta = self.conv_value.split_projected(value, self.project_value, self.parts, slice(2))
        dt = self.heads.step(delta, None if signal is None else self.factor(signal), mask)
        if last is None:
            C = self.conv_query(self.project_query(query))
            return self.heads(x, dt, B, C, self.project_gate(query + value))
        width = min(self.conv_width, query.shape[1])
        window = last[:, None] + torch.arange(1 - width, 1, device=last.device)
        rows = torch.arange(len(last), device=last.device)[:, None]
        asked = self.project_query(query[rows, window.clamp(min=0)])
        C = self.conv_query.last(asked.masked_fill((window < 0)[..., None], 0))  # zeros before the first position
        z = self.project_gate(query[rows[:, 0], last] + value[rows[:, 0], last])
        return self.heads(x, dt, B, C, z, last)
