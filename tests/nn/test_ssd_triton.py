"""The fused kernels: on the GPU where there is one, else in Triton's interpreter."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from kernel_checks import DEVICE, needs_kernels, run_compiling
from torch import Tensor

from mmm4rec.errors import UserError
from mmm4rec.nn import ssd as module
from mmm4rec.nn import triton_support
from mmm4rec.nn.blocks import SSDSizes, TiSSD
from mmm4rec.nn.ssd import ssd, ssd_chunked, ssd_quadratic, ssd_reference
from mmm4rec.nn.time_signal import TimeMask

ssd_triton = pytest.importorskip("mmm4rec.nn.ssd_triton")
pytestmark = needs_kernels

# length, heads, groups, head size, states, skip: none, one a head, one a position
CASES = [
    (1, 1, 1, 1, 1, "head"),
    (2, 3, 3, 5, 4, "position"),
    (5, 2, 1, 16, 7, None),
    (16, 2, 2, 16, 16, "head"),
    (20, 2, 1, 20, 33, "position"),
    (20, 2, 2, 64, 64, "head"),
    (33, 2, 1, 8, 16, "head"),
    (64, 2, 2, 5, 20, None),
    (64, 1, 1, 33, 64, "position"),
    (17, 1, 1, 128, 100, "head"),
]


def inputs(
    length: int, heads: int = 2, groups: int = 2, p: int = 5, n: int = 4, skip: str | None = "head", rows: int = 2
) -> list[Tensor]:
    """x, dt, a, B, C and perhaps skip; decays from almost none to almost total."""
    torch.manual_seed(length)
    values = [
        torch.randn(rows, length, heads, p),
        torch.rand(rows, length, heads) * 2,
        -torch.rand(heads) * 4,
        torch.randn(rows, length, groups, n),
        torch.randn(rows, length, groups, n),
    ]
    if skip:
        values.append(torch.randn(heads) if skip == "head" else torch.randn(rows, length, heads))
    return [v.to(DEVICE).requires_grad_() for v in values]


@pytest.fixture(autouse=True)
def exact():
    """Training elsewhere in this process may have allowed TF32, which is coarser than these comparisons."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def cast(values: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [v.detach().to(dtype).requires_grad_() for v in values]


def fused(*values: Tensor) -> Tensor:
    return ssd(*values, method="fused")


def with_gradients(form, values: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    y = form(*values)
    weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device=DEVICE).reshape(y.shape).to(y.dtype)
    return y, torch.autograd.grad((y * weight).sum(), values)


def assert_near(found, wanted, tolerance: float) -> None:
    """Within a share of the largest entry."""
    for ours, theirs in zip([found[0], *found[1]], [wanted[0], *wanted[1]], strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(
            ours.double(), theirs.double(), rtol=0, atol=tolerance * max(1.0, float(theirs.detach().abs().max()))
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_equals_the_recurrence_and_the_quadratic_form(case) -> None:
    values = inputs(*case)
    found = with_gradients(fused, values)
    assert [v.dtype for v in (found[0], *found[1])] == [torch.float32] * (1 + len(values))
    assert_near(found, with_gradients(ssd_reference, cast(values, torch.float64)), 1e-5)
    assert_near(found, with_gradients(ssd_quadratic, values), 1e-5)


def test_tf32_where_training_allows_it() -> None:
    torch.set_float32_matmul_precision("high")
    values = inputs(20, p=16, n=16)
    assert ssd_triton._precision(values[0]) == "tf32"
    assert_near(with_gradients(fused, values), with_gradients(ssd_reference, cast(values, torch.float64)), 0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inputs_of_half_precision(dtype: torch.dtype) -> None:
    values = inputs(20, heads=2, groups=1)
    halves = [v if k in (1, 2) else v.detach().to(dtype).requires_grad_() for k, v in enumerate(values)]
    found = with_gradients(fused, halves)
    assert [g.dtype for g in found[1]] == [v.dtype for v in halves]
    assert found[0].dtype == dtype
    assert_near(found, with_gradients(ssd_reference, cast(halves, torch.float64)), 0.01)


def test_inputs_and_gradients_need_not_be_contiguous() -> None:
    values = inputs(7, heads=2, groups=2, p=6, n=4)
    wanted = with_gradients(ssd_quadratic, values)
    x, dt, a, B, C, skip = (v.detach() for v in values)
    mixed = torch.cat([v.flatten(-2) for v in (x, B, C)], -1)  # views of one tensor, as after a projection
    views = [v.unflatten(-1, (2, -1)) for v in mixed.split([12, 8, 8], -1)]
    x = views[0].transpose(-1, -2).contiguous().transpose(-1, -2)  # the last dimension is not the innermost
    strided = [v.requires_grad_() for v in (x, dt.transpose(0, 1).contiguous().transpose(0, 1), a, *views[1:], skip)]
    assert_near(with_gradients(fused, strided), wanted, 1e-5)
    grads = torch.autograd.grad(fused(*strided).sum(), strided)  # an expanded gradient
    assert_near((x, grads), (x, torch.autograd.grad(ssd_quadratic(*values).sum(), values)), 1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 50.0, 1e4, 1e30])
def test_no_decay_makes_a_nan(scale: float) -> None:
    x, dt, a, B, C, _ = inputs(20, rows=1)
    dt = (dt.detach() * scale).requires_grad_()
    found = with_gradients(fused, [x, dt, a, B, C])
    assert all(torch.isfinite(v).all() for v in (found[0], *found[1]))
    wanted = with_gradients(ssd_quadratic, [x, dt, a, B, C])
    assert_near(found, wanted, 1e-5)


def test_long_decays_do_not_cancel() -> None:
    dt = torch.full((1, 64, 1), 1000.0, device=DEVICE)
    dt[0, -1] = 1e-3
    ones = torch.ones(1, 64, 1, 1, device=DEVICE)
    y = fused(ones, dt, -ones[0, 0, 0], ones, ones)[0, -1, 0, 0]
    assert float(y) == pytest.approx(1000 * math.exp(-1e-3) + 1e-3, rel=1e-6)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bf16-mixed"])
@pytest.mark.parametrize("skip", ["x", "dt_x"])
def test_in_a_block(skip: str, mixed: bool) -> None:
    """All of it, from a projection's views to weights' gradients."""
    sizes = SSDSizes(
        width=6, heads=2, head_size=4, state_size=3, conv_width=4, max_length=7, timed=False, dropout=0.0, eps=1e-5
    )
    torch.manual_seed(0)
    blocks = [TiSSD(replace(sizes, skip=skip, method=method)).to(DEVICE) for method in ("fused", "quadratic")]
    blocks[0].load_state_dict(blocks[1].state_dict())
    u = torch.randn(2, 7, 6, device=DEVICE)
    for block in blocks:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=mixed):
            out, _ = block(u, None, TimeMask(None, None))
        out.float().square().sum().backward()
    for ours, theirs in zip(*(block.parameters() for block in blocks), strict=True):
        tolerance = 0.05 if mixed else 1e-5
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=tolerance * float(1 + theirs.grad.abs().max()))


COMPILE = """
from kernel_checks import compile_for
from mmm4rec.nn.ssd_triton import _backward_kernel, _forward_kernel

for capability, length, width, warps in ((80, 16, 16, 4), (80, 32, 64, 4), (90, 32, 64, 4), (90, 64, 64, 8)):
    for kernel in (_forward_kernel, _backward_kernel):
        sizes = {"L": length, "P": width, "N": width, "PRECISION": "tf32"}
        compiled = compile_for(capability, kernel, sizes, warps=warps)
        # what a block may have, as CUDA's programming guide has it
        assert compiled.metadata.shared <= 1024 * {80: 163, 90: 227}[capability]
"""


@pytest.mark.slow
def test_they_compile_for_a_gpu_that_is_not_there(tmp_path) -> None:
    run_compiling(COMPILE, tmp_path)


def test_no_rows() -> None:
    values = inputs(3, rows=0)
    assert with_gradients(fused, values)[1][2].tolist() == [0, 0]


def test_what_does_not_fit_takes_another_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssd_triton, "ssd_fused", None)
    for values, form in [
        (cast(inputs(5), torch.float64), ssd_quadratic),
        (inputs(65), ssd_quadratic),
        (inputs(129), ssd_chunked),
        (inputs(2, p=129), ssd_quadratic),
        (inputs(2, n=129), ssd_quadratic),
        (inputs(33, n=65), ssd_quadratic),
    ]:
        assert torch.equal(fused(*values), form(*values))


def test_auto_takes_it_where_it_runs_and_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = inputs(5)
    monkeypatch.setattr(module, "_kernels", lambda device, required: ssd_triton)
    monkeypatch.setattr(triton_support, "_started", {})
    assert torch.equal(ssd(*values), ssd_triton.ssd_fused(*values))
    assert list(triton_support._started.values()) == [True]

    def fail(*_):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(triton_support, "_started", {})
    monkeypatch.setattr(ssd_triton, "_backward", fail)
    with pytest.warns(UserWarning, match="no C compiler"):
        first = ssd(*values)
    assert torch.equal(first, ssd_quadratic(*values))
    assert torch.equal(ssd(*values), first)  # and says so once


@pytest.mark.skipif(DEVICE.type == "cuda", reason="auto takes the kernels there")
def test_auto_goes_without_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "load", None)  # not even asked for
    values = inputs(5)
    assert torch.equal(ssd(*values), ssd_quadratic(*values))


def test_its_absence_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [v.cpu() for v in inputs(5)]
    monkeypatch.setattr(triton_support, "interpreted", lambda: False)
    with pytest.raises(UserError, match=r"^ssd_method: fused needs an NVIDIA GPU .*, not cpu; take auto$"):
        fused(*values)
    triton_support.load.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "mmm4rec.nn.ssd_triton")
    monkeypatch.delattr("mmm4rec.nn.ssd_triton")
    try:
        with pytest.raises(UserError, match="fused needs Triton, which is not installed"):
            fused(*values)
        assert torch.equal(ssd(*values), ssd_quadratic(*values))
    finally:
        triton_support.load.cache_clear()
