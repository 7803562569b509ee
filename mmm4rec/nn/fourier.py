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

    Spectra are those of ``length`` positions. The transforms are products with their matrices: they are short, and a
    GPU's library of transforms makes a plan, with memory of its own, for every number of rows that it sees.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        bins = length // 2 + 1
        self.text = ComplexLinear(bins)
        self.image = ComplexLinear(bins)
        self.out = ComplexLinear(bins)
        spectra = torch.fft.rfft(torch.eye(length, dtype=torch.float64), norm="ortho")  # of each position
        # Back, a bin counts for itself and for its mirror image; the first and, of an even length, the last have none.
        # These two are real: what is imaginary there counts for nothing.
        copies = torch.full((bins,), 2.0, dtype=torch.float64)
        copies[[0, -1] if length % 2 == 0 else 0] = 1
        for name, matrix in (("forth", spectra), ("back", spectra * copies)):
            self.register_buffer(name, torch.stack((matrix.real, matrix.imag)), persistent=False)
        self.forth: Tensor
        self.back: Tensor

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """T_co [B, H, L] of the two signals [B, H, L], 0 beyond L <= length; the heads share the maps."""
        dtype, length = self.out.real.weight.dtype, text.shape[-1]
        real, imag = (matrix[:length].to(dtype) for matrix in self.forth)
        real_back, imag_back = (matrix[:length].to(dtype).T for matrix in self.back)
        with torch.autocast(text.device.type, enabled=False):
            signals = torch.stack((text, image)).to(dtype)
            spectra = torch.complex(signals @ real, signals @ imag)
            mixed = self.out(self.text(spectra[0]) * spectra[0] + self.image(spectra[1]) * spectra[1])
            return mixed.real @ real_back + mixed.imag @ imag_back
