import pytest
import torch
import torch.nn.functional as F

from mmm4rec.nn.gated_norm import GatedRMSNorm


def test_gate_comes_before_the_norm() -> None:
    norm = GatedRMSNorm(2, 1e-12)
    y, z = torch.tensor([3.0, 4.0]), torch.tensor([1.0, -1.0])
    gated = [3 * 0.7310586, -4 * 0.2689414]
    length = ((gated[0] ** 2 + gated[1] ** 2) / 2) ** 0.5
    torch.testing.assert_close(norm(y, z), torch.tensor(gated) / length)


@pytest.mark.parametrize("cached", [1, 12, 2**18])  # numbers: a row at a time, some, all
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_have_the_values_and_gradients_of_the_plain_norm(
    dtype: torch.dtype, shape: tuple[int, ...], cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("mmm4rec.nn.blockwise.CACHED", cached)
    norm = GatedRMSNorm(5, 1e-6).to(dtype)
    torch.nn.init.uniform_(norm.weight)
    y, z, grad = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    found, wanted = norm(y, z), F.rms_norm(y * F.silu(z), (5,), norm.weight, 1e-6)
    torch.testing.assert_close(found, wanted)
    leaves = (y, z, norm.weight)
    torch.testing.assert_close(*(torch.autograd.grad(v, leaves, grad) for v in (found, wanted)))


def test_a_row_of_zeros_has_finite_gradients() -> None:
    norm, y, z = GatedRMSNorm(3, 1e-12), torch.zeros(1, 3, requires_grad=True), torch.ones(1, 3)
    norm(y, z).sum().backward()
    assert y.grad is not None
    assert y.grad.isfinite().all()


def test_mixed_precision() -> None:
    torch.manual_seed(0)
    norm, y, z = GatedRMSNorm(5, 1e-6), torch.randn(4, 5), torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(y.bfloat16(), z.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), norm(y, z), rtol=0.05, atol=0.05)
