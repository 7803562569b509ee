"""The dual-channel Fourier filter of MMM4Rec (eq. 12-15): one time signal out of those of text and image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ComplexLinear(nn.Module):
    """CL(x + iy) = (Ax + a) - (By + b) + i((Bx + b) + (Ay + a)): weight A + iB, bias (a - b) + i(a + b)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.real = nn.Linear(size, size)
        self.imag = nn.Linear(size, size)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Map the bins, the last axis of a complex tensor."""
        weight = torch.complex(self.real.weight, self.imag.weight)
        bias = torch.complex(self.real.bias - self.imag.bias, self.real.bias + self.imag.bias)
        return F.linear(spectrum, weight, bias)


class FourierFilter(nn.Module):
    """T_co = irfft(CL_o(CL_text(S_text) * S_text + CL_image(S_image) * S_image)), S = rfft(T), ortho norm.

    Spectra are those of ``length`` positions.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        bins = length // 2 + 1
        self.text = ComplexLinear(bins)
        self.image = ComplexLinear(bins)
        self.out = ComplexLinear(bins)
        # A real signal's first bin is real, and the last one if the length is even. What a library does with an
        # imaginary part there is its own choice, so it is taken out.
        imaginary = torch.ones(bins)
        imaginary[0] = 0
        if length % 2 == 0:
            imaginary[-1] = 0
        self.register_buffer("imaginary", imaginary, persistent=False)
        self.imaginary: Tensor

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """T_co [B, H, L] of the two signals [B, H, L], 0 beyond L <= length; the heads share the maps."""
        spectra = torch.fft.rfft(torch.stack((text, image)).to(self.imaginary.dtype), n=self.length, norm="ortho")
        mixed = self.out(self.text(spectra[0]) * spectra[0] + self.image(spectra[1]) * spectra[1])
        mixed = torch.complex(mixed.real, mixed.imag * self.imaginary)
        return torch.fft.irfft(mixed, n=self.length, norm="ortho")[..., : text.shape[-1]]
