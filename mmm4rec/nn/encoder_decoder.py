"""Transformer of encoder and decoder (Vaswani et al., NeurIPS 2017), post-norm, as ``torch.nn.Transformer`` has it.

Shapes: B rows, Q tokens of the encoder, L positions of the decoder, D width.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmm4rec.nn.blocks import FeedForward
from mmm4rec.nn.transformer import EPS, Attention, last_position


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's result, position-wise network."""

    def __init__(self, size: int, inner_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.own = Attention(size, heads, dropout)
        self.other = Attention(size, heads, dropout)
        self.feed_forward = FeedForward(size, inner_size, dropout, EPS, F.gelu)

    def forward(self, x: Tensor, query: Tensor, real: Tensor, memory: Tensor, known: Tensor) -> Tensor:
        """Result [B, q, D] at the positions ``query`` [B, q, D] of x [B, L, D].

        ``real`` [B, 1, 1, L] and ``known`` [B, 1, 1, Q] say which positions and which of ``memory`` [B, Q, D] count.
        """
        y = self.own(x, query, real, causal=False)
        return self.feed_forward(self.other(memory, y, known, causal=False))


class EncoderDecoder(nn.Module):
    """As many layers of encoder as of decoder, a LayerNorm after each; no position is hidden from another."""

    def __init__(self, size: int, inner_size: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.ModuleList(Attention(size, heads, dropout) for _ in range(layers))
        self.feed_forward = nn.ModuleList(FeedForward(size, inner_size, dropout, EPS, F.gelu) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(size, eps=EPS)
        self.decoder = nn.ModuleList(DecoderLayer(size, inner_size, heads, dropout) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(size, eps=EPS)

    def encode(self, tokens: Tensor, known: Tensor) -> Tensor:
        """Memory [B, Q, D] of ``tokens`` [B, Q, D], a set; those that are not ``known`` [B, Q] bool are not there."""
        mask = known[:, None, None]
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            tokens = feed_forward(attention(tokens, tokens, mask, causal=False))
        return self.encoder_norm(tokens)

    def decode_last(self, x: Tensor, lengths: Tensor, memory: Tensor, known: Tensor) -> Tensor:
        """Result [B, D] at the last real position of right-padded rows x [B, L, D].

        The top layer computes that position alone.
        """
        real = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[:, None, None]
        mask = known[:, None, None]
        *below, top = cast("list[DecoderLayer]", list(self.decoder))
        for layer in below:
            x = layer(x, x, real, memory, mask)
        return self.decoder_norm(top(x, last_position(x, lengths)[:, None], real, memory, mask)[:, 0])
