"""Causal convolutions: each form, forward and backward, over lengths."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.padded import causal_conv
from benchmarks.roofline import Work, best, measure_rates
from benchmarks.table import Row
from mmm4rec.nn.conv import CausalConv, ShiftedSums, convolve
from mmm4rec.nn.triton_support import kernels

PARTS, CONVOLVED, K = (512, 512, 512, 512, 8), slice(1, 4), 4  # as in MMM4Rec: z, x, B, C and delta
CHANNELS = 3 * 512  # convolved
POSITIONS = {"cpu": 2_000, "cuda": 20_000}  # of a batch, whatever the length of its rows
SIZES = {"quick": (4, 20), "full": (4, 20, 50, 200)}

Convolution = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def rows(size: str, device: str) -> Iterator[Row]:
    """Values and gradients of as many positions at each length."""
    where = torch.device(device)
    rates = measure_rates(where)
    fused = kernels("conv_triton", where)
    for length in SIZES[size]:
        n_rows = POSITIONS[device] // length
        limit = least(n_rows * length).seconds(rates)
        remark = f"{n_rows} rows"
        plain = measure(in_form(ShiftedSums), n_rows, length, where)
        yield Row("shifted sums", length, "positions", plain, "roofline", limit, remark=remark)
        rival = measure(torch_conv, n_rows, length, where)
        yield Row("shifted sums", length, "positions", plain, "torch.nn.functional.conv1d", rival, remark=remark)
        if fused is not None and fused.starts(*invent(1, 1, where)):
            seconds = measure(in_form(fused), n_rows, length, where)
            yield Row("fused", length, "positions", seconds, "roofline", limit, remark=remark)
            yield Row("fused", length, "positions", seconds, "shifted sums", plain, remark=remark)


def torch_conv(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """The same by PyTorch's own convolution, a group a channel, under autograd."""
    z, *mixed, delta = x.split(PARTS, -1)
    return z, *causal_conv(torch.cat(mixed, -1), weight, bias).split(PARTS[CONVOLVED], -1), delta


def in_form(form: Any) -> Convolution:
    """``CausalConv.split`` by `mmm4rec.nn.conv.ShiftedSums` or the kernels."""
    return lambda x, weight, bias: convolve(x, weight, bias, PARTS, CONVOLVED, form)


def least(positions: int) -> Work:
    """What no form does without.

    Forward reads x and writes the result; backward reads x and the result's gradient and writes that of x, into which
    it copies those of the parts that are not convolved. Operations are next to none.
    """
    return Work(operations=0, bytes=4 * positions * (5 * CHANNELS + 2 * (sum(PARTS) - CHANNELS)))


def measure(convolution: Convolution, n_rows: int, length: int, where: torch.device) -> float:
    """Seconds of a convolution with its gradients."""
    x, weight, bias = invent(n_rows, length, where)
    weights = [torch.randn(n_rows, length, width, device=where) for width in PARTS]

    def step() -> None:
        torch.autograd.grad(convolution(x, weight, bias), (x, weight, bias), weights)

    return best(step, where)


def invent(n_rows: int, length: int, where: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias."""
    conv = CausalConv(CHANNELS, K).to(where)
    return torch.randn(n_rows, length, sum(PARTS), device=where, requires_grad=True), conv.weight, conv.bias
