import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmm4rec.nn.conv import CausalConv


@pytest.mark.parametrize("cached", [1, 40, 2**18])  # numbers: a row at a time, some, all
@pytest.mark.parametrize("length", [1, 2, 4, 5, 300])
def test_is_a_causal_depthwise_convolution(length: int, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("mmm4rec.nn.blockwise.CACHED", cached)
    conv = CausalConv(3, 4).double()
    x = torch.randn(5, length, 6, dtype=torch.float64, requires_grad=True)
    part = x[..., 2:5]  # not contiguous, as a slice of a projection
    wanted = F.silu(F.conv1d(F.pad(part.transpose(1, 2), (3, 0)), conv.weight[:, None], conv.bias, groups=3))
    y = conv(part)
    torch.testing.assert_close(y, wanted.transpose(1, 2))
    leaves = (x, conv.weight, conv.bias)
    weight = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad((y * weight).sum(), leaves),
        torch.autograd.grad((wanted.transpose(1, 2) * weight).sum(), leaves),
    )


@pytest.mark.parametrize(
    ("parts", "convolved"), [((2, 1, 2, 1), slice(1, 3)), ((1, 2, 3), slice(2)), ((1, 2), slice(2))]
)
def test_split_is_a_split_before_and_one_behind(parts: tuple[int, ...], convolved: slice) -> None:
    torch.manual_seed(0)
    conv = CausalConv(3, 4).double()
    x = torch.randn(5, 6, sum(parts), dtype=torch.float64, requires_grad=True)
    wanted = list(x.split(parts, -1))
    wanted[convolved] = conv(torch.cat(wanted[convolved], -1)).split(parts[convolved], -1)
    found = conv.split(x, parts, convolved)
    torch.testing.assert_close(found, tuple(wanted))
    weights = [torch.randn_like(y) for y in found]
    for used in (range(len(parts)), [len(parts) - 1]):  # of one alone: the others' gradients are nothing
        sums = (sum((ys[k] * weights[k]).sum() for k in used) for ys in (found, wanted))
        leaves = (x, conv.weight, conv.bias)
        torch.testing.assert_close(
            *(torch.autograd.grad(y, leaves, retain_graph=True, materialize_grads=True) for y in sums)
        )


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3)])
def test_takes_nothing(shape: tuple[int, ...]) -> None:
    conv, x = CausalConv(3, 4), torch.randn(shape, requires_grad=True)
    y = conv(x)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad is not None
    assert not conv.weight.grad.any()  # type: ignore[union-attr]


def test_gradcheck() -> None:
    conv = CausalConv(2, 4).double()
    assert torch.autograd.gradcheck(conv, torch.randn(3, 6, 2, dtype=torch.float64, requires_grad=True))


def test_last_column_meets_the_current_position() -> None:
    conv = CausalConv(1, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[10.0, 1.0]]))
        conv.bias.fill_(0.5)
    y = conv(torch.tensor([[[1.0], [2.0]]]))
    torch.testing.assert_close(y.flatten(), F.silu(torch.tensor([1.5, 12.5])))


def test_last_from_a_window() -> None:
    conv = CausalConv(3, 4)
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(conv.last(x[:, 1:5]), conv(x)[:, 4])


@pytest.mark.parametrize("cached", [1, 40, 2**18])
@pytest.mark.parametrize("length", [1, 3, 6])
@pytest.mark.parametrize(
    ("parts", "convolved"), [((2, 1, 2, 1), slice(1, 3)), ((1, 2, 3), slice(2)), ((3,), slice(None))]
)
def test_split_of_a_projection_is_the_projection_then_the_split(
    parts: tuple[int, ...], convolved: slice, length: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, the bias that is added within the convolution among them."""
    torch.manual_seed(0)
    monkeypatch.setattr("mmm4rec.nn.blockwise.CACHED", cached)
    conv, project = CausalConv(3, 4).double(), nn.Linear(7, sum(parts)).double()
    u = torch.randn(5, length, 7, dtype=torch.float64, requires_grad=True)
    found, wanted = conv.split_projected(u, project, parts, convolved), conv.split(project(u), parts, convolved)
    torch.testing.assert_close(found, wanted)
    weights = [torch.randn_like(y) for y in found]
    for used in (range(len(parts)), [len(parts) - 1]):
        sums = (sum((ys[k] * weights[k]).sum() for k in used) for ys in (found, wanted))
        leaves = (u, *project.parameters(), *conv.parameters())
        torch.testing.assert_close(
            *(torch.autograd.grad(y, leaves, retain_graph=True, materialize_grads=True) for y in sums)
        )


def test_split_of_a_projection_in_mixed_precision() -> None:
    torch.manual_seed(0)
    conv, project, u = CausalConv(3, 4), nn.Linear(7, 5), torch.randn(2, 6, 7)
    wanted = conv.split_projected(u, project, (2, 3), slice(1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        found = conv.split_projected(u, project, (2, 3), slice(1, 2))
    assert {y.dtype for y in found} == {torch.bfloat16}
    torch.testing.assert_close([y.float() for y in found], list(wanted), rtol=0.05, atol=0.05)


def test_last_from_fewer_positions_than_taps() -> None:
    conv, x = CausalConv(3, 4), torch.randn(2, 2, 3)
    torch.testing.assert_close(conv.last(x), conv(x)[:, 1])
