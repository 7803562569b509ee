"""BSARec: self-attention mixed with a filter of frequencies (Shin, Choi, Wi and Park, AAAI 2024).

A spectrum is one of all L = max_length positions, padding included, so rows have that length here and are padded on the
left: the last event is always the last position, as its authors have it.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmm4rec.models.base import Catalogue, Rows, System, Tables
from mmm4rec.models.items import IdVectors
from mmm4rec.models.transformer import TransformerSettings
from mmm4rec.nn.dropout import Dropout
from mmm4rec.nn.initialise import normal_
from mmm4rec.nn.transformer import EPS, Attention, FeedForward


class BSARecSettings(TransformerSettings):
    """Sizes, dropout, the filter's cutoff and its weight."""

    cutoff: int = Field(ge=1)
    alpha: float = Field(ge=0, le=1)
    defects: list[Literal["right_padding"]] = Field([])

    @model_validator(mode="after")
    def _cutoff_fits(self) -> "BSARecSettings":
        if self.cutoff // 2 > self.max_length // 2:
            raise ValueError(f"cutoff {self.cutoff} is above the highest frequency of {self.max_length} positions")
        return self


class FrequencyFilter(nn.Module):
    """LN(X + drop(low + beta^2 * high)): low are the frequencies up to cutoff // 2 of X, high = X - low.

    A low pass is a fixed linear map of the positions, so it is applied as a matrix [L, L].
    """

    low_pass: Tensor

    def __init__(self, length: int, width: int, cutoff: int, dropout: float) -> None:
        super().__init__()
        spectra = torch.fft.rfft(torch.eye(length, dtype=torch.float64), dim=0)
        spectra[cutoff // 2 + 1 :] = 0
        self.register_buffer("low_pass", torch.fft.irfft(spectra, n=length, dim=0).float(), persistent=False)
        self.beta = nn.Parameter(torch.randn(width))
        self.drop = Dropout(dropout)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, x: Tensor, *, last: bool) -> Tensor:
        """Map x [B, L, D] to the same; with ``last`` to [B, 1, D], the last position."""
        low = (self.low_pass[-1:] if last else self.low_pass) @ x
        if last:
            x = x[:, -1:]
        mixed = low + self.beta.square() * (x - low)
        return cast(Tensor, self.norm(x + self.drop(mixed)))


class Layer(nn.Module):
    """X' = alpha * Frequency(X) + (1 - alpha) * Attention(X), then a feed-forward network."""

    def __init__(self, settings: BSARecSettings) -> None:
        super().__init__()
        s = settings
        self.alpha = s.alpha
        self.filter = FrequencyFilter(s.max_length, s.hidden_size, s.cutoff, s.dropout)
        self.attention = Attention(s.hidden_size, s.heads, s.dropout)
        self.ffn = FeedForward(s.hidden_size, s.inner_size, s.dropout)

    def forward(self, x: Tensor, allowed: Tensor, *, last: bool) -> Tensor:
        """Map x [B, L, D], with where attention may go [B, 1, L, L], to the same; with ``last`` to [B, 1, D]."""
        query = x[:, -1:] if last else x
        attended = self.attention(x, query, allowed[:, :, -1:] if last else allowed, causal=False)
        return cast(Tensor, self.ffn(self.alpha * self.filter(x, last=last) + (1 - self.alpha) * attended))


class BSARec(System):
    """Item and position vectors, layers of attention and frequencies, scores by the same item vectors."""

    Settings = BSARecSettings
    settings: BSARecSettings
    fixed_length = True

    def __init__(self, settings: Any, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, pretraining=pretraining)
        s = self.settings
        self.item = IdVectors(catalogue, s.hidden_size)
        self.position = nn.Embedding(s.max_length, s.hidden_size)
        self.norm = nn.LayerNorm(s.hidden_size, EPS)
        self.drop = Dropout(s.dropout)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.apply(normal_)

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """The item vectors [M + 1, D]."""
        return (self.item.table(ids),)

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """Hidden state of the last event [B, D], always at position L - 1."""
        items, real = padded_left(rows, self.max_length)
        position = self.position.weight
        # Padding hides from every event; a padded position sees itself alone, for a softmax over nothing is no number.
        allowed = (real[:, None] & torch.ones_like(real[0]).expand(self.max_length, -1).tril()) | torch.eye(
            self.max_length, dtype=torch.bool, device=real.device
        )
        if "right_padding" in self.settings.defects:
            # A filter turns with the circle of positions, so padding on the right is padding on the left but for two
            # things: positions count from the oldest event, on into the padding, which comes last and sees all events.
            turned = torch.arange(self.max_length, device=real.device) + rows.lengths[:, None]
            position = F.embedding(turned % self.max_length, position)
            allowed = torch.where(real[:, :, None], allowed, real[:, None])
        x = self.drop(self.norm(F.embedding(items, tables[0], padding_idx=0) + position))
        for layer in self.layers:
            x = layer(x, allowed[:, None], last=layer is self.layers[-1])
        return cast(Tensor, x[:, 0])


def padded_left(rows: Rows, length: int) -> tuple[Tensor, Tensor]:
    """Items [B, length] with the padding on the left, and where they are real."""
    position = torch.arange(length, device=rows.lengths.device) - (length - rows.lengths[:, None])
    real = position >= 0
    return torch.where(real, rows.items.gather(1, position.clamp(min=0)), 0), real


MODEL = BSARec
