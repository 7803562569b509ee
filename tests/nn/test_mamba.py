import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmm4rec.nn import mamba as module
from mmm4rec.nn.initialise import normal_
from mmm4rec.nn.mamba import Mamba, MambaLayer, selective_scan, selective_scan_last, selective_scan_reference

LENGTHS = [1, 2, 3, 7, 20, 50]


def inputs(
    rows: int, length: int, channels: int = 5, states: int = 4, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """x, dt, A, B, C; decays from almost none to almost total."""
    torch.manual_seed(length)
    x, dt = torch.randn(rows, length, channels), torch.rand(rows, length, channels) * 2
    A = -torch.rand(channels, states) * 4
    B, C = torch.randn(rows, length, states), torch.randn(rows, length, states)
    return [v.to(dtype).requires_grad_() for v in (x, dt, A, B, C)]


def unrolled(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The matrix form: an [l, l] matrix a channel."""
    length = x.shape[1]
    y = torch.zeros_like(x)
    for i in range(length):
        for j in range(i + 1):
            decay = torch.exp(dt[:, j + 1 : i + 1].sum(1)[..., None] * A)  # [b, c, n]
            y[:, i] += dt[:, j] * x[:, j] * (decay * (C[:, i] * B[:, j])[:, None]).sum(-1)
    return y


def test_two_positions_by_hand() -> None:
    # one channel, two states: s_1 = 0.5 * 4 * (1, 10) = (2, 20), y_1 = 2 + 20
    # s_2 = (2 e^-1, 20 e^-2) + 1 * 3 * (1, 0), y_2 = 5 * (2 e^-1 + 3) + 7 * 20 e^-2
    x, dt = torch.tensor([[[4.0], [3.0]]]), torch.tensor([[[0.5], [1.0]]])
    A, B, C = (
        torch.tensor([[-1.0, -2.0]]),
        torch.tensor([[[1.0, 10.0], [1.0, 0.0]]]),
        torch.tensor([[[1.0, 1], [5, 7]]]),
    )
    wanted = torch.tensor([22.0, 5 * (2 * math.exp(-1) + 3) + 7 * 20 * math.exp(-2)])
    for form in (selective_scan_reference, selective_scan):
        torch.testing.assert_close(form(x, dt, A, B, C).flatten(), wanted)
    last = selective_scan_last(x, dt, A, B, C[:, 1], torch.tensor([2]))
    torch.testing.assert_close(last.flatten(), wanted[1:])


@pytest.mark.parametrize("length", [1, 2, 7])
def test_reference_is_the_matrix_form(length: int) -> None:
    values = inputs(3, length)
    torch.testing.assert_close(selective_scan_reference(*values), unrolled(*values))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("block", [1, 300, 2**19])
def test_fast_forms_equal_the_recurrence(
    length: int, rows: int, dtype: torch.dtype, tolerance: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.BLOCK, "cpu", block)
    values = inputs(rows, length, dtype=dtype)
    reference = selective_scan_reference(*values)
    weight = torch.randn_like(reference)
    wanted = torch.autograd.grad((reference * weight).sum(), values, retain_graph=True)
    y = selective_scan(*values)
    torch.testing.assert_close(y, reference, atol=tolerance, rtol=tolerance)
    got = torch.autograd.grad((y * weight).sum(), values)
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)

    lengths = torch.randint(1, length + 1, (rows,))
    at = (torch.arange(rows), lengths - 1)
    wanted = torch.autograd.grad((reference[at] * weight[at]).sum(), values)
    y = selective_scan_last(*values[:4], values[4][at], lengths)
    torch.testing.assert_close(y, reference[at], atol=tolerance, rtol=tolerance)
    got = torch.autograd.grad((y * weight[at]).sum(), values)
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)


def test_gradcheck() -> None:
    values = inputs(2, 4, channels=3, states=2)
    assert torch.autograd.gradcheck(selective_scan, values)
    lengths = torch.tensor([2, 4])
    values[4] = values[4].detach()[:, 0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *v: selective_scan_last(*v, lengths), values)


def test_half_precision_keeps_states_in_float32() -> None:
    x, dt, A, B, C = (v.detach() for v in inputs(2, 50, dtype=torch.float32))
    wanted = selective_scan_reference(x, dt, A, B, C)
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(x.bfloat16(), dt, A, B.bfloat16(), C.bfloat16())
        last = selective_scan_last(x.bfloat16(), dt, A, B.bfloat16(), C[:, -1].bfloat16(), torch.tensor([50, 50]))
    assert y.dtype == last.dtype == torch.bfloat16
    assert (y.float() - wanted).abs().max() < 0.03 * wanted.abs().max()
    assert (last.float() - wanted[:, -1]).abs().max() < 0.03 * wanted.abs().max()


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 60), scale=st.sampled_from([0.0, 1e-3, 1.0, 50.0, 1e4]))
def test_no_decay_makes_a_nan(length: int, scale: float) -> None:
    x, dt, A, B, C = values = inputs(2, length, dtype=torch.float32)
    lengths = torch.tensor([length, 1])
    for y in (selective_scan(x, dt * scale, A, B, C), selective_scan_last(x, dt * scale, A, B, C[:, 0], lengths)):
        assert torch.isfinite(y).all()
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y.sum(), values))


def plain_block(block: Mamba, u: Tensor) -> Tensor:
    """The block from its definition: a library's convolution, one projection after the other, the recurrence."""
    weight = block.conv.weight
    x = block.input(u).transpose(1, 2)
    x = F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight[:, None], block.conv.bias, groups=len(weight))
    x = F.silu(x.transpose(1, 2))
    step, B = block.write(x).split(block.parts, -1)
    dt = torch.log1p(torch.exp(step @ block.step_weight.T + block.step_bias))
    y = selective_scan_reference(x, dt, -block.A_log.exp(), B, block.read(x)) + block.D * x
    return block.out(y * F.silu(block.gate(u)))


@pytest.fixture
def block() -> Mamba:
    torch.manual_seed(0)
    return Mamba(20, state_size=4, conv_width=4, expand=2).double()


def test_block_follows_its_definition(block: Mamba) -> None:
    u = torch.randn(3, 9, 20, dtype=torch.float64)
    torch.testing.assert_close(block(u), plain_block(block, u))
    assert block.parts[0] == 2  # rank ceil(20 / 16)


def test_last_position_is_one_of_all(block: Mamba) -> None:
    u, lengths = torch.randn(3, 9, 20, dtype=torch.float64), torch.tensor([9, 4, 1])
    rows = torch.arange(3)
    torch.testing.assert_close(block(u, lengths), block(u)[rows, lengths - 1])
    for residual in (True, False):
        layer = MambaLayer(block, 20, 0.0, 1e-12, residual=residual).double()
        torch.testing.assert_close(layer(u, lengths), layer(u)[rows, lengths - 1])
        wanted = F.layer_norm(block(u) + u if residual else block(u), (20,), eps=1e-12)
        torch.testing.assert_close(layer(u), wanted)


def test_last_position_ignores_what_follows(block: Mamba) -> None:
    u, lengths = torch.randn(2, 6, 20, dtype=torch.float64), torch.tensor([3, 6])
    changed = u.clone()
    changed[0, 3:] += 100
    torch.testing.assert_close(block(changed, lengths), block(u, lengths))


def test_steps_survive_the_initialisation() -> None:
    """Mamba4Rec's and M3Rec's published code zeroes the bias: steps of 0.69 instead of 1e-3 to 1e-1."""
    torch.manual_seed(0)
    holder = nn.ModuleList([Mamba(64, 32, 4, 2), Mamba(64, 32, 4, 2, reset_steps=True)]).apply(normal_)
    steps, reset = (F.softplus(block.step_bias.detach()) for block in holder)
    assert steps.min() >= 1e-3 * (1 - 1e-4)
    assert steps.max() <= 1e-1 * (1 + 1e-4)
    assert steps.log().std() > 1  # log-uniform over two decades: 1.33
    assert torch.allclose(reset, torch.tensor(math.log(2)))
    assert holder[0].step_weight.detach().std() == pytest.approx(0.5 / math.sqrt(3), rel=0.1)  # uniform in +- rank^-0.5
    assert holder[1].step_weight.detach().std() == pytest.approx(0.02, rel=0.1)
    torch.testing.assert_close(holder[0].A_log.exp(), torch.arange(1.0, 33).expand(128, 32))
