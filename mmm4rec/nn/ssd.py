"""State space duality (Dao and Gu 2024; MMM4Rec eq. 3-5): one linear recurrence, computed in several ways.

For each row and head, with decay exp(dt_i a) <= 1,

    S_i = exp(dt_i a) S_{i-1} + dt_i x_i B_i^T,    y_i = S_i C_i + skip_i x_i,    S_0 = 0,

or, unrolled, Y = ((C B^T) * M)(dt * x) + skip * x with M[i, j] = exp(a sum_{k=j+1..i} dt_k) for j <= i, else 0.

Shapes, the same for every function here: x [b, l, h, p], dt [b, l, h] >= 0, a [h] < 0, B and C [b, l, g, n] with g = h
(head k uses group k) or g = 1 (all heads share it), skip [h] or [b, l, h] or None; result [b, l, h, p]. Decays are
computed in float32 at least and as sums of terms of one sign, so nothing cancels and no exponent is positive.
"""

from types import ModuleType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmm4rec.errors import UserError
from mmm4rec.nn import triton_support

Method = Literal["auto", "quadratic", "chunked", "fused"]

CHUNK = 64  # positions


def ssd(
    x: Tensor, dt: Tensor, a: Tensor, B: Tensor, C: Tensor, skip: Tensor | None = None, *, method: Method = "auto"
) -> Tensor:
    """Run the recurrence by the form that is faster for the length at hand.

    ``auto`` takes the quadratic form up to two chunks of positions, the chunked one beyond: where they cross, measured
    with 8 heads of 64 and 64 states, forward and backward. On a GPU that runs them it takes the fused kernels before
    both, where they fit. ``fused`` insists on them: their absence is an error, and only what does not fit, as long rows
    and float64, goes as with ``auto``.
    """
    assert x.shape[:3] == dt.shape, (x.shape, dt.shape)
    assert B.shape[2] in (1, x.shape[2]), (x.shape, B.shape)
    assert x.dtype == B.dtype == C.dtype, (x.dtype, B.dtype, C.dtype)
    if method in ("auto", "fused") and (kernels := _kernels(x.device, required=method == "fused")) is not None:
        fits = kernels.fits(x, dt, B, C)
        if fits and (method == "fused" or kernels.starts(x, dt, a, B, C, skip)):
            y: Tensor = kernels.ssd_fused(x, dt, a, B, C, skip)
            return y
    if method == "quadratic" or (method != "chunked" and x.shape[1] <= 2 * CHUNK):
        return ssd_quadratic(x, dt, a, B, C, skip)
    return ssd_chunked(x, dt, a, B, C, skip)


def ssd_reference(x: Tensor, dt: Tensor, a: Tensor, B: Tensor, C: Tensor, skip: Tensor | None = None) -> Tensor:
    """The recurrence as it reads, position by position: slow, for tests."""
    b, length, h, p = x.shape
    B, C = (v.expand(b, length, h, v.shape[-1]) for v in (B, C))
    state, y = x.new_zeros(b, h, p, B.shape[-1]), []
    for i in range(length):
        decay = (dt[:, i] * a).exp()[..., None, None]
        state = decay * state + (dt[:, i, :, None] * x[:, i])[..., None] * B[:, i, :, None]
        y.append((state * C[:, i, :, None]).sum(-1))
    return torch.stack(y, 1) if skip is None else torch.stack(y, 1) + skip[..., None] * x


def ssd_quadratic(x: Tensor, dt: Tensor, a: Tensor, B: Tensor, C: Tensor, skip: Tensor | None = None) -> Tensor:
    """The unrolled form: one [l, l] matrix a head, O(l^2)."""
    dt = _at_least_float32(dt)
    weights = _decay_matrix(dt * a) * dt.transpose(1, 2)[:, :, None]
    diagonal = weights.new_zeros(()) if skip is None else skip
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _Mix.apply(x, B, C, weights, diagonal.expand(dt.shape))
    return y


class _Mix(torch.autograd.Function):
    """y = ((C B^T) * W + diag(D)) x for every row and head, W [b, h, l, l] and D [b, l, h]; result [b, l, h, p].

    With M the matrix that x is multiplied with and g the gradient of y,

        dM = g x^T,    dx = M^T g,    dW = dM * (C B^T),    dC = (dM * W) B,    dB = (dM * W)^T C.

    Written out, since autograd gives the gradient of B with the positions innermost, where all that is done with it
    goes over memory in long strides; and rows of one or two positions need no product of matrices.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, B: Tensor, C: Tensor, weights: Tensor, diagonal: Tensor) -> Tensor:
        x, B, C = (v.transpose(1, 2).contiguous() for v in (x, B, C))
        scores = _inner(C, B)
        mixing = scores * weights
        mixing.diagonal(dim1=-2, dim2=-1).add_(diagonal.transpose(1, 2))
        mixing = mixing.to(x.dtype)
        ctx.save_for_backward(x, B, C, weights, scores, mixing)
        return _apply(mixing, x).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, B, C, weights, scores, mixing = ctx.saved_tensors
        grad = grad.transpose(1, 2).contiguous()
        of_mixing = _inner(grad, x).to(weights.dtype)
        of_scores = of_mixing * weights
        if B.shape[1] < x.shape[1]:  # shared by all heads
            of_scores = of_scores.sum(1, keepdim=True)
        of_scores = of_scores.to(B.dtype)
        grads = _apply(mixing.mT, grad), _apply(of_scores.mT, C), _apply(of_scores, B)
        diagonal = of_mixing.diagonal(dim1=-2, dim2=-1)
        return *(v.transpose(1, 2) for v in grads), of_mixing * scores, diagonal.transpose(1, 2)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Products of every position of a with every one of b, [..., l, n] both: [..., l, l]."""
    return (a * b).sum(-1, keepdim=True) if a.shape[-2] == 1 else a @ b.mT


def _apply(matrix: Tensor, v: Tensor) -> Tensor:
    """[..., l, l] times [..., l, n]."""
    if v.shape[-2] not in (1, 2):
        return matrix @ v
    result = matrix[..., :1] * v[..., :1, :]
    return result if v.shape[-2] == 1 else result.addcmul_(matrix[..., 1:], v[..., 1:, :])


def ssd_chunked(
    x: Tensor, dt: Tensor, a: Tensor, B: Tensor, C: Tensor, skip: Tensor | None = None, *, chunk: int = CHUNK
) -> Tensor:
    """The unrolled form within chunks and the recurrence from chunk to chunk, O(l)."""
    b, length = x.shape[:2]
    # A padded position has dt = 0: it neither decays nor feeds the state.
    padded = [F.pad(v, (0, 0) * (v.dim() - 2) + (0, -length % chunk)) for v in (x, _at_least_float32(dt), B, C)]
    xs, dts, Bs, Cs = (v.reshape(-1, chunk, *v.shape[2:]) for v in padded)
    log_decay = dts * a
    fed = torch.einsum(
        "zjhp,zjhn->zhpn",
        xs * (dts * sums_after(log_decay).exp())[..., None].to(x.dtype),
        Bs.expand(*xs.shape[:3], -1),
    )
    kept = log_decay.sum(1).exp()[..., None, None]

    fed, kept = fed.unflatten(0, (b, -1)), kept.unflatten(0, (b, -1))
    before = [torch.zeros_like(fed[:, 0])]  # state before each chunk
    for k in range(fed.shape[1] - 1):
        before.append(kept[:, k] * before[-1] + fed[:, k])

    states = torch.stack(before, 1).flatten(0, 1).to(x.dtype)
    carried = torch.einsum("zihn,zhpn->zihp", Cs.expand(*xs.shape[:3], -1), states)
    y = ssd_quadratic(xs, dts, a, Bs, Cs) + carried * log_decay.cumsum(1).exp()[..., None].to(x.dtype)
    y = y.reshape(b, -1, *y.shape[2:])[:, :length]
    return y if skip is None else y + skip[..., None] * x


def ssd_last(
    x: Tensor, dt: Tensor, a: Tensor, B: Tensor, C: Tensor, last: Tensor, skip: Tensor | None = None
) -> Tensor:
    """One position ``last`` [b] int64 a row of the result, [b, h, p], in O(l); C [b, g, n] is that position's."""
    dt = _at_least_float32(dt)
    position = torch.arange(x.shape[1], device=x.device)[:, None]
    last = last[:, None, None]
    real = position <= last
    log_decay = sums_after((dt * a).masked_fill(~real, 0))
    weights = (B * C[:, None]).sum(-1) * (log_decay.exp() * dt).masked_fill(~real, 0)
    if skip is not None:
        weights = weights + skip * (position == last)
    return (weights[..., None].to(x.dtype) * x).sum(1)


def _kernels(device: torch.device, *, required: bool) -> ModuleType | None:
    """`mmm4rec.nn.ssd_triton` where it runs on that device; None, or an error, where it does not."""
    if not required:
        return triton_support.kernels("ssd_triton", device)
    module = triton_support.load("ssd_triton")
    if module is None:
        raise UserError("ssd_method: fused needs Triton, which is not installed here; take auto")
    if not triton_support.runs_on(device):
        raise UserError(f"ssd_method: fused needs an NVIDIA GPU of capability 8.0 or later, not {device}; take auto")
    return module


def _at_least_float32(v: Tensor) -> Tensor:
    return v.to(torch.promote_types(v.dtype, torch.float32))


def _decay_matrix(log_decay: Tensor) -> Tensor:
    """M: exp of the sums of log_decay [b, l, h] over k = j+1..i; 0 for j > i: [b, h, l, l]."""
    length = log_decay.shape[1]
    lower = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).tril()
    terms = log_decay.transpose(1, 2)[..., None].expand(-1, -1, -1, length)  # [b, h, k, j]
    sums = terms.masked_fill(~lower.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~lower, -torch.inf).exp()


def sums_after(v: Tensor) -> Tensor:
    """Sum over the later positions, [b, l, h]: 0 at the last."""
    return F.pad(v[:, 1:].flip(1).cumsum(1).flip(1), (0, 0, 0, 1))
