import math

import pytest
import torch
import torch.nn.functional as F

from mmm4rec.nn.time_signal import NextTime, TimeFactor, TimeGaps, TimeMask, TimeNorm

EPS = 1e-12
EVERYTHING = TimeMask(None, None)


def mask(lengths: list[int], length: int) -> TimeMask:
    return TimeMask((torch.arange(length) < torch.tensor(lengths)[:, None])[:, None], None)


def test_gaps_by_hand() -> None:
    # gaps 0, 10, 20 of mean 10 and standard deviation sqrt(200 / 3)
    gaps = TimeGaps(4, heads=2, dropout=0.0, eps=EPS)
    times = torch.tensor([[1_500_000_000, 1_500_000_010, 1_500_000_030, 0]])
    z = math.sqrt(1.5)
    signal = gaps(times, mask([3], 4))
    torch.testing.assert_close(signal, torch.tensor([[-z, 0.0, z, 0.0]]).expand(2, 4)[None])


def test_kept_padding_dominates_the_released_reading() -> None:
    times = torch.zeros(1, 20, dtype=torch.int64)
    times[0, :3] = torch.tensor([1_500_000_000, 1_500_086_400, 1_500_172_800])
    signal = TimeGaps(20, 1, 0.0, EPS)(times, EVERYTHING)[0, 0].detach()
    assert float(signal[3]) == pytest.approx(-4.36, abs=0.01)
    assert signal[[0, 1, 2, 4, 19]].sub(0.23).abs().max() < 0.01


def test_masked_norm_is_layer_norm_of_the_real_positions() -> None:
    norm = TimeNorm(6, EPS)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 6)
    y = norm(x, mask([4, 1], 6).real)
    torch.testing.assert_close(y[0, :, :4], F.layer_norm(x[0, :, :4], (4,), norm.weight[:4], norm.bias[:4], EPS))
    torch.testing.assert_close(y[1, :, 0], norm.bias[0].expand(3))
    assert (y[0, :, 4:] == 0).all()
    assert (y[1, :, 1:] == 0).all()
    torch.testing.assert_close(norm(x, None), F.layer_norm(x, (6,), norm.weight, norm.bias, EPS))


def test_single_events_and_ties_have_finite_gradients() -> None:
    gaps, following = TimeGaps(5, 2, 0.0, EPS), NextTime(5, 0.0, EPS)
    factor = TimeFactor(5, 2, 4, 0.0)
    times = torch.tensor([[7, 0, 0, 0, 0], [7, 7, 7, 0, 0]])
    m = mask([1, 3], 5)
    signal = gaps(times, m)
    following(signal, factor(signal), m).square().sum().backward()
    for module in (gaps, following, factor):
        assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_factor_and_next_signal_follow_the_equations() -> None:
    torch.manual_seed(0)
    factor, following = TimeFactor(6, 2, 3, 0.0), NextTime(6, 0.0, EPS)
    signal = torch.randn(4, 2, 6)
    v = factor.scale_out(F.silu(factor.scale_in(signal)))
    wanted = signal * (v - torch.tanh(v))
    for conv in (factor.conv_1, factor.conv_2):
        wanted = F.silu(F.conv1d(F.pad(wanted, (2, 0)), conv.weight[:, None], conv.bias, groups=2))
    got = factor(signal)
    torch.testing.assert_close(got, wanted.transpose(1, 2))
    q = torch.sigmoid(signal @ following.gate.weight[0] + following.gate.bias)[..., None]
    torch.testing.assert_close(
        following(signal, got, EVERYTHING), F.layer_norm(q * signal + (1 - q) * wanted, (6,), eps=EPS)
    )


def test_repeat_stacks_the_same_rows() -> None:
    m = TimeMask(mask([1, 3], 4).real, torch.tensor([True, False])[:, None, None]).repeat(2)
    assert m.real.sum(-1).flatten().tolist() == [1, 3, 1, 3]
    assert m.known.flatten().tolist() == [True, False, True, False]
    assert EVERYTHING.repeat(2) == EVERYTHING
