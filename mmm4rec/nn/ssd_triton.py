"""The quadratic form of state space duality in one kernel a direction, for short rows; see `mmm4rec.nn.ssd`.

One program a row and head holds all of its positions, so no [l, l] matrix leaves it. With S[i, j] the sum of dt_k over
k = j+1..i, M[i, j] = exp(a S[i, j]) for j <= i and 0 for j > i, and W = C B^T, the forward kernel computes

    K[i, j] = W[i, j] M[i, j] dt_j,    y_i = sum_j K[i, j] x_j + skip_i x_i.

The backward kernel makes S, M and W anew from the same inputs and, with g the gradient of y, computes

    R[i, j] = g_i . x_j,    U[i, j] = R[i, j] M[i, j] dt_j,    H[i, j] = R[i, j] W[i, j] M[i, j],
    dx_j = sum_i K[i, j] g_i + skip_j g_j,    dskip_i = g_i . x_i,    dC = U B,    dB = U^T C,
    s_k = sum of H[i, j] dt_j over i >= k > j, the gradient of a dt_k as part of a S,
    ddt_k = sum_i H[i, k] + a s_k,    da = sum_k dt_k s_k.

S is a running sum over k of dt_k where k > j: a sum of terms of one sign, with none taken away again.

Inputs that several heads, rows or positions share are expanded before, so each program writes gradients of its own and
their sums are PyTorch's: the same in every run. All is computed in float32. Products of matrices take TF32 where
`torch.set_float32_matmul_precision` allows it and for inputs of half precision, all of whose digits TF32 keeps; else
TF32 thrice, which is float32 but for the last digits.
Importing this file needs Triton.
"""

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmm4rec.nn import triton_support

MAX_LENGTH = 64  # positions
MAX_WIDTH = 128  # of a head, and of its state
MAX_TILE = 64 * 64  # positions times width: with more, the backward kernel spills registers or lacks shared memory
LEAST = 16  # rows and columns of a product of matrices


def fits(x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> bool:
    """Whether lengths, widths and dtypes are such that the kernels take them."""
    length, width = _block(x.shape[1]), _block(max(x.shape[3], B.shape[3]))
    return (
        length <= MAX_LENGTH
        and width <= MAX_WIDTH
        and length * width <= MAX_TILE
        and all(v.dtype in triton_support.DTYPES for v in (x, dt, B, C))
    )


def starts(x: Tensor, dt: Tensor, a: Tensor, B: Tensor, C: Tensor, skip: Tensor | None = None) -> bool:
    """Whether both kernels compile and start for inputs of such sizes."""

    def attempt() -> None:
        inputs = [None if v is None else v[:1].detach() for v in _expand(x, dt, a, B, C, skip)]
        _backward(_forward(*inputs), *inputs)

    sizes = x.device, x.dtype, _block(x.shape[1]), _block(x.shape[3]), _block(B.shape[3]), _precision(x)
    return triton_support.starts("ssd", sizes, attempt)


def ssd_fused(x: Tensor, dt: Tensor, a: Tensor, B: Tensor, C: Tensor, skip: Tensor | None = None) -> Tensor:
    """The unrolled form in one kernel; shapes as in `mmm4rec.nn.ssd`, result of x's dtype."""
    return cast(Tensor, _Fused.apply(*_expand(x, dt, a, B, C, skip)))


def _expand(
    x: Tensor, dt: Tensor, a: Tensor, B: Tensor, C: Tensor, skip: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The inputs, one of each for every row and head."""
    b, length, h, _ = x.shape
    B, C = (v.expand(b, length, h, -1) for v in (B, C))
    return x, dt, a.expand(b, h), B, C, None if skip is None else skip.expand(b, length, h)


class _Fused(torch.autograd.Function):
    """x [b, l, h, p], dt [b, l, h], a [b, h], B and C [b, l, h, n], skip [b, l, h] or None."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs)
        return _forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(grad, *ctx.saved_tensors)


def _forward(*inputs: Tensor | None) -> Tensor:
    x = cast(Tensor, inputs[0])
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    arguments, options = _launch(inputs)
    with torch.cuda.device_of(x):
        _forward_kernel[(x.shape[0] * x.shape[2],)](*arguments, y, **options)
    return y


def _backward(grad: Tensor, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    x = cast(Tensor, inputs[0])
    grads = [None if v is None else torch.empty(v.shape, dtype=v.dtype, device=v.device) for v in inputs]
    arguments, options = _launch(inputs)
    with torch.cuda.device_of(x):
        _backward_kernel[(x.shape[0] * x.shape[2],)](*arguments, grad.contiguous(), *grads, **options)
    return tuple(grads)


def _launch(inputs: tuple[Tensor | None, ...]) -> tuple[list[Any], dict[str, Any]]:
    """What both kernels take first, and by name."""
    x, dt, a, B, C, skip = inputs
    x, B, C = (v if v.stride(-1) == 1 else v.contiguous() for v in cast(tuple[Tensor, ...], (x, B, C)))
    _, length, heads, p = x.shape
    arguments: list[Any] = [length, heads, p, B.shape[3]]
    for v in (x, dt, a, B, C, skip):
        arguments += [v, (0, 0, 0) if v is None else v.stride()[:3]]
    block = _block(length)
    return arguments, {
        "L": block,
        "P": _block(p),
        "N": _block(B.shape[3]),
        "PRECISION": _precision(x),
        "num_warps": 8 if block > 32 else 4,
        "enable_fp_fusion": True,
    }


def _block(size: int) -> int:
    """Of a tile that holds so many."""
    return max(LEAST, triton.next_power_of_2(size))


def _precision(x: Tensor) -> str:
    """Of matrix products: three of TF32 make one of nearly float32, where one in float32 would not fit registers."""
    exact = x.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return "tf32x3" if exact else "tf32"


# In the kernels row i, column j or k of a tile; capital sizes are those of tiles, padded with zeros: dt = 0 neither
# decays nor feeds.


@triton.jit
def _read(start, step, length, width, LENGTH: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    i, k = tl.arange(0, LENGTH)[:, None], tl.arange(0, WIDTH)[None, :]
    return tl.load(start + i * step + k, mask=(i < length) & (k < width), other=0.0).to(tl.float32)


@triton.jit
def _write(start, step, length, width, tile, LENGTH: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    i, k = tl.arange(0, LENGTH)[:, None], tl.arange(0, WIDTH)[None, :]
    tl.store(start + i * step + k, tile, mask=(i < length) & (k < width))


@triton.jit
def _read_column(start, step, length, LENGTH: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, LENGTH)
    return tl.load(start + i * step, mask=i < length, other=0.0).to(tl.float32)


@triton.jit
def _write_column(start, step, length, column, LENGTH: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, LENGTH)
    tl.store(start + i * step, column, mask=i < length)


@triton.jit
def _decays(dt, a, LENGTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """M; at [k, j] the running sum adds dt_k where k > j."""
    k, j = tl.arange(0, LENGTH)[:, None], tl.arange(0, LENGTH)[None, :]
    sums = tl.cumsum(tl.where(k > j, dt[:, None], 0.0), axis=0)
    return tl.where(k >= j, tl.exp(sums * a), 0.0)


@triton.jit(do_not_specialize=["length"])
def _forward_kernel(  # type: ignore[no-untyped-def]
    length,
    heads,
    p,
    n,
    x_start,
    x_strides,
    dt_start,
    dt_strides,
    a_start,
    a_strides,
    B_start,
    B_strides,
    C_start,
    C_strides,
    skip_start,
    skip_strides,
    y_start,
    L: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    dt = _read_column(dt_start + row * dt_strides[0] + head * dt_strides[2], dt_strides[1], length, L)
    a = tl.load(a_start + row * a_strides[0] + head * a_strides[1]).to(tl.float32)
    B = _read(B_start + row * B_strides[0] + head * B_strides[2], B_strides[1], length, n, L, N)
    C = _read(C_start + row * C_strides[0] + head * C_strides[2], C_strides[1], length, n, L, N)
    x = _read(x_start + row * x_strides[0] + head * x_strides[2], x_strides[1], length, p, L, P)

    mixing = tl.dot(C, tl.trans(B), input_precision=PRECISION) * _decays(dt, a, L) * dt[None, :]
    y = tl.dot(mixing, x, input_precision=PRECISION)
    if skip_start is not None:
        skip = _read_column(skip_start + row * skip_strides[0] + head * skip_strides[2], skip_strides[1], length, L)
        y += skip[:, None] * x
    _write(y_start + (row * length * heads + head) * p, heads * p, length, p, y, L, P)


@triton.jit(do_not_specialize=["length"])
def _backward_kernel(  # type: ignore[no-untyped-def]
    length,
    heads,
    p,
    n,
    x_start,
    x_strides,
    dt_start,
    dt_strides,
    a_start,
    a_strides,
    B_start,
    B_strides,
    C_start,
    C_strides,
    skip_start,
    skip_strides,
    grad_start,
    dx_start,
    ddt_start,
    da_start,
    dB_start,
    dC_start,
    dskip_start,
    L: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    out = row * length * heads + head  # of what is written: [b, l, h] in order
    dt = _read_column(dt_start + row * dt_strides[0] + head * dt_strides[2], dt_strides[1], length, L)
    a = tl.load(a_start + row * a_strides[0] + head * a_strides[1]).to(tl.float32)
    x = _read(x_start + row * x_strides[0] + head * x_strides[2], x_strides[1], length, p, L, P)
    grad = _read(grad_start + out * p, heads * p, length, p, L, P)
    B = _read(B_start + row * B_strides[0] + head * B_strides[2], B_strides[1], length, n, L, N)
    C = _read(C_start + row * C_strides[0] + head * C_strides[2], C_strides[1], length, n, L, N)

    decays = _decays(dt, a, L)
    mixing = tl.dot(C, tl.trans(B), input_precision=PRECISION) * decays  # before dt_j
    of_mixing = tl.dot(grad, tl.trans(x), input_precision=PRECISION)

    dx = tl.dot(tl.trans(mixing * dt[None, :]), grad, input_precision=PRECISION)
    if skip_start is not None:
        skip = _read_column(skip_start + row * skip_strides[0] + head * skip_strides[2], skip_strides[1], length, L)
        dx += skip[:, None] * grad
        _write_column(dskip_start + out, heads, length, tl.sum(grad * x, axis=1), L)
    _write(dx_start + out * p, heads * p, length, p, dx, L, P)

    of_products = of_mixing * decays * dt[None, :]
    dC = tl.dot(of_products, B, input_precision=PRECISION)
    _write(dC_start + out * n, heads * n, length, n, dC, L, N)
    dB = tl.dot(tl.trans(of_products), C, input_precision=PRECISION)
    _write(dB_start + out * n, heads * n, length, n, dB, L, N)

    of_dt = of_mixing * mixing
    k, j = tl.arange(0, L)[:, None], tl.arange(0, L)[None, :]
    later = tl.cumsum(of_dt * dt[None, :], axis=0, reverse=True)  # [k, j]: over i >= k
    of_steps = tl.sum(tl.where(k > j, later, 0.0), axis=1)
    _write_column(ddt_start + out, heads, length, tl.sum(of_dt, axis=0) + a * of_steps, L)
    tl.store(da_start + row * heads + head, tl.sum(dt * of_steps))
