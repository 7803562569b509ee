"""Causal depthwise convolution with SiLU, a kernel forward and one back, a form of `mmm4rec.nn.conv`.

One program walks along the positions of some rows and channels and keeps the last K of them in registers, so each
number is read once. With z the sum before SiLU, s = sigmoid(z) and dy the gradient of y, the forward kernel computes

    z_i = b + sum_j w_j x_{i-K+1+j},    y_i = z_i s_i,    j = 0..K-1.

The backward kernel makes z anew from x and computes

    g_i = dy_i s_i (1 + z_i (1 - s_i)),    dx_{i-K+1} = sum_j w_j g_{i-j},
    dw_j = sum_i g_i x_{i-K+1+j},    db = sum_i g_i.

It walks K-1 positions beyond the row, as dx comes so much later. Each program writes the sums dw and db over its rows
and those over all are PyTorch's: the same in every run. All is computed in float32.
Importing this file needs Triton.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmm4rec.nn import triton_support

MAX_WIDTH = 8  # K: the last K positions stay in registers
MAX_CHANNELS = 128  # of a program
TILE = 512  # rows times channels of a program: four a thread, whose loads are under way at once


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether K and the dtype are such that the kernels take them."""
    return x.dtype in triton_support.DTYPES and weight.shape[1] <= MAX_WIDTH


def starts(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether both kernels compile and start for inputs of such sizes."""

    @torch.no_grad()
    def attempt() -> None:
        some = x.new_zeros(1, 1, len(bias))
        y, saved = forward(some, weight, bias)
        backward(saved, (y,), some)

    sizes = x.device, x.dtype, weight.shape[1], _tile(len(bias))
    return triton_support.starts("conv", sizes, attempt)


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Convolve x [B, L, C] with weight [C, K] and bias [C]: y, and what ``backward`` needs."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run(_forward_kernel, _tile(len(bias)), x, weight, bias, y)
    return y, (x, weight, bias)


def backward(saved: tuple[Tensor, ...], grads: Sequence[Tensor], grad_x: Tensor) -> tuple[Tensor, Tensor]:
    """Write the gradient of x; grads are those of y, in parts of its channels. Result: those of weight and bias."""
    x, weight, bias = saved
    tile, widths = _tile(len(bias)), [grad.shape[-1] for grad in grads]
    programs = triton.cdiv(len(x), tile[0])
    sums = torch.empty(programs, weight.shape[1] + 1, len(bias), dtype=torch.float32, device=x.device)
    parts = (x.split(widths, -1), weight.split(widths), bias.split(widths))
    for part in zip(*parts, grads, grad_x.split(widths, -1), sums.split(widths, -1), strict=True):
        _run(_backward_kernel, tile, *part)
    total = sums.sum(0)
    return total[:-1].T, total[-1]


def _run(kernel: Any, tile: tuple[int, int], x: Tensor, weight: Tensor, bias: Tensor, *others: Tensor) -> None:
    arguments: list[Any] = [*x.shape, bias]
    for v in (x, weight, *others):
        arguments += [v, v.stride()]
    grid = triton.cdiv(x.shape[0], tile[0]), triton.cdiv(x.shape[2], tile[1])
    sizes = {"K": weight.shape[1], "ROWS": tile[0], "CHANNELS": tile[1]}
    with torch.cuda.device_of(x):
        kernel[grid](*arguments, **sizes, num_warps=4, enable_fp_fusion=True)


def _tile(channels: int) -> tuple[int, int]:
    """Rows and channels of a program."""
    width = min(MAX_CHANNELS, triton.next_power_of_2(channels))
    return TILE // width, width


# In the kernels capital sizes are those of tiles [ROWS, CHANNELS]; what lies beyond rows and channels is masked.


@triton.jit
def _tile_of_program(rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    # One layout for all tiles, with channels side by side in a warp. Where some tensors are aligned for wider accesses
    # and others are not, Triton would take two, and every step of the walk would wait for conversions between them.
    channel = tl.max_contiguous(tl.multiple_of(channel, (1, 1)), (1, 2))
    return row, channel, (row < rows) & (channel < channels)


@triton.jit
def _read(start, inside):  # type: ignore[no-untyped-def]
    return tl.load(start, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _push(values, latest):  # type: ignore[no-untyped-def]
    """K values without the first, the latest behind them."""
    return values[1:] + (latest,)  # noqa: RUF005


@triton.jit
def _read_taps(start, strides, channel, channels, K: tl.constexpr):  # type: ignore[no-untyped-def]
    taps = (0.0,) * K
    for j in tl.static_range(K):
        taps = _push(taps, _read(start + channel * strides[0] + j * strides[1], channel < channels))
    return taps


@triton.jit
def _before_silu(bias, taps, window, K: tl.constexpr):  # type: ignore[no-untyped-def]
    z = bias
    for j in tl.static_range(K):
        z += taps[j] * window[j]
    return z


@triton.jit(do_not_specialize=["rows", "length"])
def _forward_kernel(  # type: ignore[no-untyped-def]
    rows,
    length,
    channels,
    bias_start,
    x_start,
    x_strides,
    weight_start,
    weight_strides,
    y_start,
    y_strides,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row, channel, inside = _tile_of_program(rows, channels, ROWS, CHANNELS)
    taps = _read_taps(weight_start, weight_strides, channel, channels, K)
    bias = _read(bias_start + channel, channel < channels)
    x = x_start + row * x_strides[0] + channel * x_strides[2]
    y = y_start + row * y_strides[0] + channel * y_strides[2]
    window = (tl.zeros((ROWS, CHANNELS), tl.float32),) * K  # x_{i-K+1..i}
    for _ in range(length):
        window = _push(window, _read(x, inside))
        z = _before_silu(bias, taps, window, K)
        tl.store(y, z * tl.sigmoid(z), mask=inside)
        x += x_strides[1]
        y += y_strides[1]


@triton.jit(do_not_specialize=["rows", "length"])
def _backward_kernel(  # type: ignore[no-untyped-def]
    rows,
    length,
    channels,
    bias_start,
    x_start,
    x_strides,
    weight_start,
    weight_strides,
    dy_start,
    dy_strides,
    dx_start,
    dx_strides,
    sums_start,
    sums_strides,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row, channel, inside = _tile_of_program(rows, channels, ROWS, CHANNELS)
    taps = _read_taps(weight_start, weight_strides, channel, channels, K)
    bias = _read(bias_start + channel, channel < channels)
    x = x_start + row * x_strides[0] + channel * x_strides[2]
    dy = dy_start + row * dy_strides[0] + channel * dy_strides[2]
    dx = dx_start + row * dx_strides[0] + channel * dx_strides[2] - (K - 1) * dx_strides[1]
    zeros = tl.zeros((ROWS, CHANNELS), tl.float32)
    window = (zeros,) * K  # x_{i-K+1..i}
    gradients = (zeros,) * K  # g_{i-K+1..i}
    dw = (zeros,) * K
    db = zeros
    i = tl.zeros((1, 1), tl.int32)  # a block: Triton's interpreter joins no mask with a comparison of scalars
    for _ in range(length + K - 1):
        within = inside & (i < length)
        window = _push(window, _read(x, within))
        z = _before_silu(bias, taps, window, K)
        s = tl.sigmoid(z)
        g = _read(dy, within) * s * (1 + z * (1 - s))
        gradients = _push(gradients, g)
        of_x = zeros
        for j in tl.static_range(K):
            of_x += taps[j] * gradients[K - 1 - j]
            dw = _push(dw, dw[0] + g * window[j])  # in order again after K of them
        db += g
        tl.store(dx, of_x, mask=inside & (i >= K - 1))
        x += x_strides[1]
        dy += dy_strides[1]
        dx += dx_strides[1]
        i += 1

    sums = sums_start + tl.program_id(0).to(tl.int64) * sums_strides[0] + channel * sums_strides[2]
    for j in tl.static_range(K):
        tl.store(sums + j * sums_strides[1], tl.sum(dw[j], axis=0, keep_dims=True), mask=channel < channels)
    tl.store(sums + K * sums_strides[1], tl.sum(db, axis=0, keep_dims=True), mask=channel < channels)
