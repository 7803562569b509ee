"""The fused kernels: on the GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import DEVICE, needs_kernels, run_compiling
from torch import Tensor

from mmm4rec.nn import triton_support
from mmm4rec.nn.conv import CausalConv, ShiftedSums, convolve

conv_triton = pytest.importorskip("mmm4rec.nn.conv_triton")
pytestmark = needs_kernels

# rows, length, K, parts, which are convolved
CASES = [
    (1, 1, 4, (5,), slice(1)),
    (3, 2, 4, (3, 2), slice(2)),
    (3, 3, 1, (1, 3, 2), slice(1, 2)),
    (70, 4, 2, (2, 5, 4, 3), slice(1, 3)),
    (3, 20, 4, (2, 16, 8, 8, 1), slice(1, 4)),
    (2, 50, 4, (4, 3), slice(1)),
    (70, 5, 4, (1, 7), slice(1, 2)),
    (5, 5, 4, (1, 100, 40, 2), slice(1, 3)),
    (3, 4, 8, (6, 1), slice(1)),
]


def inputs(rows: int, length: int, K: int, parts: tuple[int, ...], convolved: slice) -> list[Tensor]:
    """x, weight and bias."""
    torch.manual_seed(length)
    C = sum(parts[convolved])
    values = [torch.randn(rows, length, sum(parts)), torch.randn(C, K), torch.randn(C)]
    return [v.to(DEVICE).requires_grad_() for v in values]


def cast(values: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [v.detach().to(dtype).requires_grad_() for v in values]


def fused(x: Tensor, weight: Tensor, bias: Tensor, parts: tuple[int, ...], convolved: slice) -> tuple[Tensor, ...]:
    return convolve(x, weight, bias, parts, convolved, conv_triton)


def shifted(x: Tensor, weight: Tensor, bias: Tensor, parts: tuple[int, ...], convolved: slice) -> tuple[Tensor, ...]:
    return convolve(x, weight, bias, parts, convolved, ShiftedSums)


def plain(x: Tensor, weight: Tensor, bias: Tensor, parts: tuple[int, ...], convolved: slice) -> tuple[Tensor, ...]:
    outputs = list(x.split(parts, -1))
    padded = F.pad(torch.cat(outputs[convolved], -1).transpose(1, 2), (weight.shape[1] - 1, 0))
    y = F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(bias))).transpose(1, 2)
    outputs[convolved] = y.split(parts[convolved], -1)
    return tuple(outputs)


def with_gradients(form, values: list[Tensor], parts: tuple[int, ...], convolved: slice) -> list[Tensor]:
    """What a form makes of them, and the gradients of a sum over it with weights."""
    ys = form(*values, parts, convolved)
    weights = (torch.linspace(-1, 1, y.numel(), device=DEVICE).reshape(y.shape).to(y.dtype) for y in ys)
    return [*ys, *torch.autograd.grad(sum((y * v).sum() for y, v in zip(ys, weights, strict=True)), values)]


def assert_near(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    """Within a share of the largest entry."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        most = max(1.0, float(theirs.detach().abs().max()))
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=tolerance * most)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_equals_the_shifted_sums_and_a_plain_convolution(case) -> None:
    values, split = inputs(*case), case[3:]
    found = with_gradients(fused, values, *split)
    assert {v.dtype for v in found} == {torch.float32}
    assert_near(found, with_gradients(shifted, values, *split), 1e-5)
    assert_near(found, with_gradients(plain, cast(values, torch.float64), *split), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("all_of_it", [True, False], ids=["all", "x"])
def test_inputs_of_half_precision(dtype: torch.dtype, all_of_it: bool) -> None:
    """With weights of the same precision or, as under autocast, of float32."""
    split = (1, 5, 2), slice(1, 3)
    values = inputs(3, 6, 4, *split)
    halves = [v if k and not all_of_it else v.detach().to(dtype).requires_grad_() for k, v in enumerate(values)]
    found = with_gradients(fused, halves, *split)
    assert [v.dtype for v in found] == [dtype] * 3 + [v.dtype for v in halves]
    assert_near(found, with_gradients(plain, cast(halves, torch.float64), *split), 0.01)


def test_inputs_and_gradients_need_not_be_contiguous() -> None:
    split = (6,), slice(1)
    values = inputs(3, 7, 4, *split)
    x, weight, bias = (v.detach() for v in values)
    across = [x.mT.contiguous().mT, weight.T.contiguous().T, bias]  # as a time signal's
    assert_near(
        with_gradients(fused, [v.requires_grad_() for v in across], *split),
        with_gradients(plain, values, *split),
        1e-5,
    )
    wide = torch.zeros(3, 9, 10, device=DEVICE)
    wide[:, 1:8, 2:8] = x
    part = wide[:, 1:8, 2:8].requires_grad_()
    expanded = torch.autograd.grad(fused(part, *values[1:], *split)[0].sum(), [part, *values[1:]])
    assert_near(expanded, torch.autograd.grad(plain(*values, *split)[0].sum(), values), 1e-5)
    weights = torch.randn(3, 6, 7, device=DEVICE).mT
    grads = [torch.autograd.grad(form(*values, *split), values, weights) for form in (fused, plain)]
    assert_near(*grads, 1e-5)


def test_one_part_used_alone() -> None:
    split = (2, 3, 4), slice(2)
    values = inputs(3, 5, 4, *split)
    for part in range(3):
        assert_near(
            *(
                torch.autograd.grad(form(*values, *split)[part].sum(), values, materialize_grads=True)
                for form in (fused, shifted)
            ),
            1e-5,
        )


def test_without_gradients_and_without_rows() -> None:
    split = (2, 3), slice(1, 2)
    values = inputs(3, 5, 4, *split)
    with torch.no_grad():
        assert_near(fused(*values, *split), plain(*values, *split), 1e-5)
    assert with_gradients(fused, inputs(0, 5, 4, *split), *split)[-1].tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of the interpreter: exp(-z) = inf, sigmoid(z) = 0
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_large_numbers_make_no_nan(scale: float) -> None:
    split = (3,), slice(1)
    x, weight, bias = inputs(2, 6, 4, *split)
    found = with_gradients(fused, [(x.detach() * scale).requires_grad_(), weight, bias], *split)
    assert all(torch.isfinite(v).all() for v in found)


def test_the_module_takes_it_where_it_runs_and_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = CausalConv(5, 4).to(DEVICE)
    x = torch.randn(3, 6, 5, device=DEVICE)
    wanted = shifted(x, conv.weight, conv.bias, (5,), slice(1))[0]
    monkeypatch.setattr(triton_support, "kernels", lambda name, device: triton_support.load(name))
    monkeypatch.setattr(triton_support, "_started", {})
    assert torch.equal(conv(x), fused(x, conv.weight, conv.bias, (5,), slice(1))[0])
    assert list(triton_support._started.values()) == [True]
    torch.testing.assert_close(conv(x), wanted)

    def fail(*_):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(triton_support, "_started", {})
    monkeypatch.setattr(conv_triton, "backward", fail)
    with pytest.warns(UserWarning, match="conv goes without its fused kernels, .*no C compiler"):
        first = conv(x)
    assert torch.equal(first, wanted)
    assert torch.equal(conv(x), first)  # and says so once


def test_what_does_not_fit_goes_as_shifted_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "kernels", lambda name, device: triton_support.load(name))
    monkeypatch.setattr(conv_triton, "forward", None)
    for conv in (CausalConv(3, 9).to(DEVICE), CausalConv(3, 4).double().to(DEVICE)):
        x = torch.randn(2, 5, 3, dtype=conv.weight.dtype, device=DEVICE)
        assert torch.equal(conv(x), shifted(x, conv.weight, conv.bias, (3,), slice(1))[0])


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the module takes the kernels there")
def test_the_module_goes_without_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "load", None)  # not even asked for
    conv, x = CausalConv(3, 4), torch.randn(2, 5, 3)
    assert torch.equal(conv(x), shifted(x, conv.weight, conv.bias, (3,), slice(1))[0])


# As in MMM4Rec: rows of x are no multiples of 16 numbers, those of y are.
COMPILE = """
from kernel_checks import compile_for
from mmm4rec.nn.conv_triton import _backward_kernel, _forward_kernel

for kernel in (_forward_kernel, _backward_kernel):
    starts = tuple(name for name in kernel.arg_names if name.endswith("start"))
    strides = {name for name in kernel.arg_names if name.endswith("strides")} - {"weight_strides"}
    aligned = (*starts, "channels", *(strides & {"y_strides", "dy_strides"}))
    for capability in (80, 90):
        compiled = compile_for(capability, kernel, {"K": 4, "ROWS": 4, "CHANNELS": 128}, aligned, tuple(strides))
        walk = compiled.asm["ttgir"].partition("scf.for")[2].partition("scf.yield")[0]
        assert "tt.load" in walk
        assert "convert_layout" not in walk
"""


@pytest.mark.slow
def test_they_compile_for_a_gpu_that_is_not_there(tmp_path) -> None:
    run_compiling(COMPILE, tmp_path)
