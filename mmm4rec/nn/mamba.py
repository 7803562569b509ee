"""The Mamba block (Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv 2312.00752).

Each channel c of x has a state of n numbers of its own, and each of them its own decay exp(dt A) <= 1:

    s_i[c] = exp(dt_i[c] A[c]) * s_{i-1}[c] + dt_i[c] x_i[c] B_i,    y_i[c] = <s_i[c], C_i>,    s_0 = 0,

or, unrolled, y_i[c] = sum_{j <= i} dt_j[c] x_j[c] sum_n C_i[n] B_j[n] exp(A[c, n] sum_{k=j+1..i} dt_k[c]).

Shapes: b rows, l positions, d model width, c = expand * d channels, n state size. For every form of the recurrence:
x and dt >= 0 [b, l, c], A < 0 [c, n], B and C [b, l, n], result [b, l, c]. Items lie on the left, padding on the right.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmm4rec.nn.conv import CausalConv
from mmm4rec.nn.dropout import Dropout
from mmm4rec.nn.initialise import step_bias
from mmm4rec.nn.ssd import sums_after
from mmm4rec.nn.transformer import last_position

LOG2_E = 1 / math.log(2)  # exp2 takes half the time of exp on a CPU
#: states computed at a time: on a CPU as many as its caches hold
BLOCK = {"cpu": 2**19, "cuda": 2**27}


class Mamba(nn.Module):
    """out = W_out((y + D x) * SiLU(W_z u)), y the recurrence of x = SiLU(conv(W_x u)), dt, B and C, all three from x.

    Linear maps have no bias. ``step_weight`` and ``step_bias`` are plain parameters, so that an initialisation of all
    linear maps leaves them as Mamba wants them: dt starts between 1e-3 and 1e-1.

    Args:
        width: d.
        state_size: n.
        conv_width: of the causal convolution.
        expand: channels a unit of width.
        reset_steps: start dt at softplus(0) = 0.69 instead, where an initialisation that does touch them leaves it.
    """

    def __init__(self, width: int, state_size: int, conv_width: int, expand: int, *, reset_steps: bool = False) -> None:
        super().__init__()
        channels, rank = expand * width, -(-width // 16)
        self.parts = (rank, state_size)
        self.input = nn.Linear(width, channels, bias=False)
        self.gate = nn.Linear(width, channels, bias=False)
        self.conv = CausalConv(channels, conv_width)
        self.write = nn.Linear(channels, rank + state_size, bias=False)  # what dt is made of, and B
        self.read = nn.Linear(channels, state_size, bias=False)  # C
        self.step_weight = nn.Parameter(torch.empty(channels, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.step_bias = nn.Parameter(step_bias(channels))
        if reset_steps:
            nn.init.normal_(self.step_weight, std=0.02)
            nn.init.zeros_(self.step_bias)
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out = nn.Linear(channels, width, bias=False)

    def forward(self, u: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mix the positions of u [b, l, d]: [b, l, d]; with ``lengths`` [b] at each row's last one alone, [b, d]."""
        x = self.conv(self.input(u))
        step, B = self.write(x).split(self.parts, -1)
        dt = F.softplus(F.linear(step, self.step_weight, self.step_bias))
        A = -torch.exp(self.A_log)
        if lengths is None:
            y = selective_scan(x, dt, A, B, self.read(x))
        else:
            now = last_position(x, lengths)
            y = selective_scan_last(x, dt, A, B, self.read(now), lengths)
            x, u = now, last_position(u, lengths)
        return self.out((y + self.D * x) * F.silu(self.gate(u)))


class MambaLayer(nn.Module):
    """LN(drop(Mamba(x)) + x); without ``residual`` LN(drop(Mamba(x)))."""

    def __init__(self, mamba: Mamba, width: int, dropout: float, eps: float, *, residual: bool = True) -> None:
        super().__init__()
        self.mamba = mamba
        self.drop = Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps)
        self.residual = residual

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[b, l, d] to the same; with ``lengths`` [b] to each row's last position alone, [b, d]."""
        y = self.drop(self.mamba(x, lengths))
        if self.residual:
            y = y + (x if lengths is None else last_position(x, lengths))
        return self.norm(y)


def selective_scan_reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The recurrence as it reads, position by position: slow, for tests."""
    state, y = x.new_zeros(len(x), *A.shape), []
    for i in range(x.shape[1]):
        state = (dt[:, i, :, None] * A).exp() * state + (dt[:, i] * x[:, i])[..., None] * B[:, i, None]
        y.append((state * C[:, i, None]).sum(-1))
    return torch.stack(y, 1)


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The recurrence at every position [b, l, c]; states are float32 at least."""
    with torch.autocast(x.device.type, enabled=False):
        x_, dt, A, B, C = (_at_least_float32(v) for v in (x, dt, A, B, C))
        y: Tensor = _Scan.apply(dt * x_, dt, A, B, C)
    return y.to(x.dtype)


def selective_scan_last(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, lengths: Tensor) -> Tensor:
    """The recurrence at each row's last position alone, [b, c]; C [b, n] is that position's.

    No position waits for another one: each contributes its input, decayed by the steps after it.
    """
    with torch.autocast(x.device.type, enabled=False):
        x_, dt, A, B, C = (_at_least_float32(v) for v in (x, dt, A, B, C))
        real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        dt = dt * real[..., None]
        weights: Tensor = _DecayedProducts.apply(sums_after(dt), B * C[:, None], A)
        y = (weights * dt * x_).sum(1)
    return y.to(x.dtype)


class _Scan(torch.autograd.Function):
    """The recurrence of inputs u = dt * x, a few rows at a time, so that their states stay in a processor's caches.

    States are not kept for the gradient but computed again, as they are n times as large as everything else here.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        ctx.save_for_backward(u, dt, A, B, C)
        log_decays = A.T * LOG2_E
        y = torch.empty_like(u)
        for rows, (decay, state) in _blocks_of_rows(u, A, 2):
            u_, dt_, B_, C_ = (_time_first(v[rows]) for v in (u, dt, B, C))
            _run(u_, dt_, B_, log_decays, decay, state)
            y[rows] = _batch_first(_row_times(C_, state))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        u, dt, A, B, C = ctx.saved_tensors
        rates = A.T.contiguous()
        log_decays = rates * LOG2_E
        grad_u, grad_dt, grad_B, grad_C = (torch.empty_like(v) for v in (u, dt, B, C))
        grad_rates = torch.zeros_like(rates)
        for rows, (decay, state, grad) in _blocks_of_rows(u, A, 3):
            u_, dt_, B_, C_, g = (_time_first(v[rows]) for v in (u, dt, B, C, grads[0]))
            _run(u_, dt_, B_, log_decays, decay, state)
            # the states' gradient: the recurrence from the end to the start
            torch.mul(g[:, :, None], C_[..., None], out=grad)
            for i in reversed(range(len(grad) - 1)):
                grad[i].addcmul_(decay[i + 1], grad[i + 1])
            grad_u[rows] = _batch_first(_row_times(B_, grad))
            grad_B[rows] = _batch_first(_row_times(u_, grad.mT))
            grad_C[rows] = _batch_first(_row_times(g, state.mT))
            of_exponents = decay[1:].mul_(grad[1:]).mul_(state[:-1])  # there is nothing to decay at the first
            grad_dt[rows, :1] = 0
            grad_dt[rows, 1:] = _batch_first(torch.mul(of_exponents, rates, out=grad[1:]).sum(-2))
            grad_rates += of_exponents.mul_(dt_[1:, :, None]).flatten(0, 1).sum(0)
        return grad_u, grad_dt, grad_rates.T, grad_B, grad_C


class _DecayedProducts(torch.autograd.Function):
    """sum_n v[n] exp(t[c] A[c, n]): [b, l, c] of t [b, l, c] and v [b, l, n], a few positions at a time."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, v: Tensor, A: Tensor) -> Tensor:
        ctx.save_for_backward(t, v, A)
        log_decays = A.T * LOG2_E
        y = torch.empty_like(t)
        for t_, v_, y_, decay in _blocks_of_positions(A, t, v, y):
            torch.mul(t_[:, None], log_decays, out=decay).exp2_()
            y_.copy_(_row_times(v_, decay))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        t, v, A = ctx.saved_tensors
        rates = A.T.contiguous()
        log_decays = rates * LOG2_E
        grad_t, grad_v, grad_rates = torch.empty_like(t), torch.empty_like(v), torch.zeros_like(rates)
        for t_, v_, g, grad_t_, grad_v_, decay in _blocks_of_positions(A, t, v, grads[0].contiguous(), grad_t, grad_v):
            torch.mul(t_[:, None], log_decays, out=decay).exp2_()
            grad_v_.copy_(_row_times(g, decay.mT))
            of_exponents = decay.mul_(v_[..., None]).mul_(g[:, None])
            grad_t_.copy_((of_exponents * rates).sum(-2))
            grad_rates += of_exponents.mul_(t_[:, None]).sum(0)
        return grad_t, grad_v, grad_rates.T


def _run(u: Tensor, dt: Tensor, B: Tensor, log_decays: Tensor, decay: Tensor, state: Tensor) -> None:
    """Fill decays and states [l, b, n, c] of u and dt [l, b, c], B [l, b, n] and log2 of decays [n, c]."""
    torch.mul(dt[:, :, None], log_decays, out=decay).exp2_()
    torch.mul(u[:, :, None], B[..., None], out=state)
    for i in range(1, len(state)):
        state[i].addcmul_(decay[i], state[i - 1])


def _row_times(row: Tensor, matrix: Tensor) -> Tensor:
    """Rows [..., k] @ matrix [..., k, m]: [..., m]. A row on the left: a CPU's kernel for columns is far slower."""
    product = torch.bmm(row.reshape(-1, 1, row.shape[-1]), matrix.reshape(-1, *matrix.shape[-2:]))
    return product.view(*row.shape[:-1], -1)


def _blocks_of_rows(u: Tensor, A: Tensor, buffers: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of the rows of u [b, l, c], and for each of them buffers [l, rows, n, c] that all slices share."""
    b, length, channels = u.shape
    a_row = length * A.numel()
    step = min(b, max(1, BLOCK[u.device.type] // a_row))
    shared = [u.new_empty(step * a_row) for _ in range(buffers)]
    for start in range(0, b, step):
        rows = min(step, b - start)
        yield slice(start, start + rows), [v[: rows * a_row].view(length, rows, -1, channels) for v in shared]


def _blocks_of_positions(A: Tensor, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """The tensors [b, l, ...] a few positions at a time, and a buffer [positions, n, c] that all blocks share."""
    flat = [v.view(-1, v.shape[-1]) for v in tensors]
    step = max(1, BLOCK[A.device.type] // A.numel())
    buffer = tensors[0].new_empty(min(step, len(flat[0])), *A.T.shape)
    for parts in zip(*(v.split(step) for v in flat), strict=True):
        yield [*parts, buffer[: len(parts[0])]]


def _time_first(v: Tensor) -> Tensor:
    return v.transpose(0, 1).contiguous()


def _batch_first(v: Tensor) -> Tensor:
    return v.transpose(0, 1)


def _at_least_float32(v: Tensor) -> Tensor:
    return v.to(torch.promote_types(v.dtype, torch.float32)).contiguous()
