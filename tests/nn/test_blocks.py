from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmm4rec.nn.blocks import FeedForward, SSDSizes, StepSize, TiCoSSD, TiSSD
from mmm4rec.nn.ssd import ssd_reference
from mmm4rec.nn.time_signal import TimeMask

SIZES = SSDSizes(
    width=6, heads=2, head_size=4, state_size=3, conv_width=4, max_length=7, timed=True, dropout=0.0, eps=1e-12
)
EVERYTHING = TimeMask(None, None)


def test_feed_forward() -> None:
    torch.manual_seed(0)
    ffn = FeedForward(5, 8, 0.0, 1e-12)
    v = torch.randn(2, 3, 5)
    inner = F.hardswish(v @ ffn.inner.weight.T + ffn.inner.bias)
    wanted = F.layer_norm(v + inner @ ffn.out.weight.T + ffn.out.bias, (5,), eps=1e-12)
    torch.testing.assert_close(ffn(v), wanted)


def test_step_size_starts_between_1e_3_and_1e_1_and_unknown_times_count_as_factor_1() -> None:
    torch.manual_seed(0)
    step = StepSize(1000)
    start = step(torch.zeros(1, 1, 1000), None, EVERYTHING).detach()
    assert 1e-3 * 0.999 <= float(start.min()) < 2e-3
    assert 5e-2 < float(start.max()) <= 1e-1 * 1.001
    step, delta, factor = StepSize(2), torch.randn(2, 3, 2), torch.randn(2, 5, 2)
    got = step(delta, factor, TimeMask(None, torch.tensor([True, False])[:, None, None]))
    torch.testing.assert_close(got[0], F.softplus(delta[0] * factor[0, :3] + step.dt_bias))
    torch.testing.assert_close(got[1], step(delta, None, EVERYTHING)[1])


@pytest.mark.parametrize("skip", ["x", "dt_x"])
def test_tissd_without_time_is_mamba_2(skip: str) -> None:
    torch.manual_seed(0)
    block = TiSSD(replace(SIZES, timed=False, skip=skip)).double()
    u = torch.randn(3, 5, 6, dtype=torch.float64)
    z, mixed, delta = block.project(u).split([8, 20, 2], -1)
    x, B, C = block.conv(mixed).split([8, 6, 6], -1)
    dt = F.softplus(delta + block.heads.step.dt_bias)
    x, B, C = x.reshape(3, 5, 2, 4), B.reshape(3, 5, 2, 3), C.reshape(3, 5, 2, 3)
    y = ssd_reference(x, dt, -block.heads.A_log.exp(), B, C)
    y = y + block.heads.D[:, None] * (x if skip == "x" else dt[..., None] * x)
    y = y.reshape(3, 5, 8) * F.silu(z)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-12).sqrt() * block.heads.norm.weight
    out, following = block(u, None, EVERYTHING)
    torch.testing.assert_close(out, block.heads.out(y))
    assert following is None


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("block", ["tissd", "ticossd"])
def test_item_path_is_causal(block: str, timed: bool) -> None:
    torch.manual_seed(0)
    sizes = replace(SIZES, timed=timed)
    signal = torch.randn(2, 2, 7) if timed else None
    u, changed = torch.randn(2, 6, 6), torch.randn(2, 6, 6)
    changed[:, :4] = u[:, :4]
    if block == "tissd":
        module = TiSSD(sizes)
        a, b = (module(v, signal, EVERYTHING)[0] for v in (u, changed))
    else:
        module = TiCoSSD(sizes)
        a, b = (module(v, 2 * v, signal, EVERYTHING) for v in (u, changed))
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert not torch.isclose(a[:, 4:], b[:, 4:]).any(-1).all()


@pytest.mark.parametrize("skip", ["x", "dt_x"])
@pytest.mark.parametrize("timed", [True, False])
def test_last_position_alone_equals_the_full_form(timed: bool, skip: str) -> None:
    torch.manual_seed(0)
    block = TiCoSSD(replace(SIZES, timed=timed, skip=skip)).double()
    lengths = torch.tensor([1, 2, 3, 4, 5, 7])
    query, value = torch.randn(2, 6, 7, 6, dtype=torch.float64).requires_grad_()
    signal = torch.randn(6, 2, 7, dtype=torch.float64) if timed else None
    full = block(query, value, signal, EVERYTHING)[torch.arange(6), lengths - 1]
    last = block(query, value, signal, EVERYTHING, lengths - 1)
    torch.testing.assert_close(last, full)
    leaves = (query, value, *block.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(last.square().sum(), leaves, allow_unused=True),
        torch.autograd.grad(full.square().sum(), leaves, allow_unused=True),
    )


def test_image_asks_and_text_answers() -> None:
    torch.manual_seed(0)
    block = TiCoSSD(replace(SIZES, timed=False))
    query, value = torch.randn(2, 1, 7, 6)
    moved = torch.zeros(1, 7, 6)
    moved[:, 0] = 1
    out = block(query, value, None, EVERYTHING)
    asked = (block(query + moved, value, None, EVERYTHING) - out).abs().amax((0, 2))
    answered = (block(query, value + moved, None, EVERYTHING) - out).abs().amax((0, 2))
    # a question lives as long as its convolution is wide, an answer is remembered
    assert (asked[:4] > 1e-5).all()
    assert (asked[4:] == 0).all()
    assert (answered > 1e-7).all()
