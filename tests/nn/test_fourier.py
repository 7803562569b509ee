import math

import pytest
import torch

from mmm4rec.nn.fourier import ComplexLinear, FourierFilter


def test_complex_linear_is_two_real_maps() -> None:
    torch.manual_seed(0)
    cl = ComplexLinear(3)
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    got = cl(torch.complex(x, y))
    torch.testing.assert_close(got.real, cl.real(x) - cl.imag(y))
    torch.testing.assert_close(got.imag, cl.imag(x) + cl.real(y))


@pytest.mark.parametrize("length", [10, 11, 20])
def test_equals_a_discrete_fourier_transform_written_out(length: int) -> None:
    torch.manual_seed(0)
    mixer = FourierFilter(length).double()
    text, image = torch.randn(2, 3, 4, length, dtype=torch.float64)
    bins = length // 2 + 1
    angle = 2 * math.pi * torch.arange(bins, dtype=torch.float64)[:, None] * torch.arange(length) / length
    cos, sin = torch.cos(angle) / math.sqrt(length), torch.sin(angle) / math.sqrt(length)
    spectra = [torch.complex(t @ cos.T, -(t @ sin.T)) for t in (text, image)]
    mixed = mixer.out(mixer.text(spectra[0]) * spectra[0] + mixer.image(spectra[1]) * spectra[1])
    twice = torch.full((bins,), 2.0, dtype=torch.float64)
    twice[0] = 1
    if length % 2 == 0:
        twice[-1] = 1
    wanted = (mixed.real * twice) @ cos - (mixed.imag * twice) @ sin
    torch.testing.assert_close(mixer(text, image), wanted)


def test_a_filter_for_each_signal_and_gradients_for_all() -> None:
    torch.manual_seed(0)
    mixer = FourierFilter(10)
    text, image = torch.randn(2, 3, 4, 10)
    assert not torch.allclose(mixer(text, image), mixer(image, text), atol=1e-3)
    mixer(text, image).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixer.parameters())
