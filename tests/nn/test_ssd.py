import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmm4rec.nn import ssd as module
from mmm4rec.nn.ssd import ssd, ssd_chunked, ssd_last, ssd_quadratic, ssd_reference

LENGTHS = [1, 2, 3, 7, 19, 20, 21, 33, 64, 100]


def inputs(
    length: int, heads: int = 3, groups: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    """x, dt, a, B, C, skip of 2 rows, heads of 5, 4 states; decays from almost none to almost total."""
    torch.manual_seed(seed)
    x = torch.randn(2, length, heads, 5)
    dt = torch.rand(2, length, heads) * 2
    a = -torch.rand(heads) * 4
    B, C = torch.randn(2, length, groups, 4), torch.randn(2, length, groups, 4)
    return [v.to(dtype).requires_grad_() for v in (x, dt, a, B, C, torch.randn(heads))]


def test_two_positions_by_hand() -> None:
    # S_1 = 2 * 3 * 5 = 30, y_1 = 30 * 7 + 10 * 3 = 240
    # S_2 = exp(-4 * 0.5) * 30 + 4 * 1 * 1, y_2 = S_2 * 2 + 10 * 1
    column = {"x": [3.0, 1.0], "dt": [2.0, 4.0], "B": [5.0, 1.0], "C": [7.0, 2.0]}
    x, B, C = (torch.tensor(column[k]).reshape(1, 2, 1, 1) for k in ("x", "B", "C"))
    dt, a, skip = torch.tensor(column["dt"]).reshape(1, 2, 1), torch.tensor([-0.5]), torch.tensor([10.0])
    wanted = torch.tensor([240.0, 2 * (30 * math.exp(-2) + 4) + 10])
    for form in (ssd_reference, ssd_quadratic, ssd_chunked):
        torch.testing.assert_close(form(x, dt, a, B, C, skip).flatten(), wanted)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_form_equals_the_recurrence(
    length: int, heads: int, groups: int, dtype: torch.dtype, tolerance: float
) -> None:
    values = inputs(length, heads, groups, dtype)
    reference = ssd_reference(*values)
    weight = torch.randn(reference.shape, dtype=dtype)
    wanted = torch.autograd.grad((reference * weight).sum(), values)
    for form in (ssd_quadratic, ssd_chunked, lambda *v: ssd_chunked(*v, chunk=8)):
        y = form(*values)
        torch.testing.assert_close(y, reference, atol=tolerance, rtol=tolerance)
        grads = torch.autograd.grad((y * weight).sum(), values)
        torch.testing.assert_close(grads, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("method", ["quadratic", "chunked"])
def test_half_precision_keeps_decays_in_float32(method: str) -> None:
    x, dt, a, B, C, skip = (v.detach() for v in inputs(100, dtype=torch.float32))
    wanted = ssd_reference(x, dt, a, B, C, skip)
    y = ssd(x.bfloat16(), dt, a, B.bfloat16(), C.bfloat16(), skip, method=method)
    assert (y.float() - wanted).abs().max() < 0.03 * wanted.abs().max()


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_half_precision_gradients_of_the_quadratic_form(length: int, groups: int) -> None:
    values = [v.detach() for v in inputs(length, dtype=torch.float32, heads=3, groups=groups)]
    halved = [v.bfloat16().requires_grad_() if k in (0, 3, 4) else v.requires_grad_() for k, v in enumerate(values)]
    whole = [v.detach().float().requires_grad_() for v in halved]
    found = torch.autograd.grad(ssd_quadratic(*halved).float().sum(), halved)
    wanted = torch.autograd.grad(ssd_reference(*whole).sum(), whole)
    for ours, theirs, leaf in zip(found, wanted, halved, strict=True):
        assert ours.dtype == leaf.dtype
        assert (ours.float() - theirs).abs().max() <= 0.05 * theirs.abs().max()


def test_gradcheck() -> None:
    values = [v.detach()[:1] if v.dim() > 1 else v.detach() for v in inputs(5, heads=2, groups=2)]
    values = [v.requires_grad_() for v in values]
    assert torch.autograd.gradcheck(ssd_quadratic, values)
    assert torch.autograd.gradcheck(lambda *v: ssd_chunked(*v, chunk=2), values)


@pytest.mark.parametrize("groups", [1, 3])
def test_last_is_one_row_of_the_whole(groups: int) -> None:
    x, dt, a, B, C, _ = values = inputs(9, groups=groups)
    skip = torch.rand(2, 9, 3, dtype=torch.float64)  # one value a position, as D * dt
    last = torch.tensor([8, 3])
    rows = torch.arange(2)
    whole = ssd_reference(x, dt, a, B, C, skip)[rows, last]
    one = ssd_last(x, dt, a, B, C[rows, last], last, skip)
    torch.testing.assert_close(one, whole)
    wanted = torch.autograd.grad(whole.square().sum(), values[:5])
    torch.testing.assert_close(torch.autograd.grad(one.square().sum(), values[:5]), wanted)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 70), chunk=st.integers(1, 80), scale=st.sampled_from([0.0, 1e-3, 1.0, 50.0, 1e4]))
def test_no_decay_makes_a_nan(length: int, chunk: int, scale: float) -> None:
    x, dt, a, B, C, _ = values = inputs(length, dtype=torch.float32, seed=length)
    for form in (ssd_quadratic, lambda *v: ssd_chunked(*v, chunk=chunk)):
        y = form(x, dt * scale, a, B, C)
        assert torch.isfinite(y).all()
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y.sum(), values[:5]))


def test_long_decays_do_not_cancel() -> None:
    # after 63 steps of total decay the last two positions still see each other exactly
    dt = torch.full((1, 64, 1), 1000.0)
    dt[0, -1] = 1e-3
    ones = torch.ones(1, 64, 1, 1)
    y = ssd_quadratic(ones, dt, torch.tensor([-1.0]), ones, ones)[0, -1, 0, 0]
    assert float(y) == pytest.approx(1000 * math.exp(-1e-3) + 1e-3, rel=1e-6)


def test_auto_goes_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(module, "ssd_quadratic", lambda *_: called.append("quadratic"))
    monkeypatch.setattr(module, "ssd_chunked", lambda *_: called.append("chunked"))
    for length in (20, 128, 129):
        ssd(*inputs(length))
    ssd(*inputs(20), method="chunked")
    assert called == ["quadratic", "quadratic", "chunked", "chunked"]
