"""Post-norm Transformer encoder of SASRec and its relatives, in RecBole's form.

Shapes: B rows, L positions, D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-12


def last_position(x: Tensor, lengths: Tensor) -> Tensor:
    """The vector at each row's last real position: x [B, L, D], lengths [B] -> [B, D]."""
    return x[torch.arange(len(x), device=x.device), lengths - 1]


class Attention(nn.Module):
    """Multi-head self-attention with residual: LN(x + dropout(W_o softmax(q k^T / sqrt(D/H)) v))."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        assert size % heads == 0, (size, heads)
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(size, size)
        self.key_value = nn.Linear(size, 2 * size)
        self.out = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size, eps=EPS)

    def forward(self, x: Tensor, query: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Attend from ``query`` [B, Q, D] to ``x`` [B, L, D]; ``mask`` [B, 1, Q, L] bool, True where allowed."""
        q = self.query(query).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in self.key_value(x).chunk(2, dim=-1))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        y = self.out(y.transpose(1, 2).flatten(2))
        return self.norm(query + F.dropout(y, self.dropout, self.training))


class FeedForward(nn.Module):
    """Position-wise network with residual: LN(x + dropout(W_2 gelu(W_1 x)))."""

    def __init__(self, size: int, inner_size: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(size, inner_size)
        self.outer = nn.Linear(inner_size, size)
        self.norm = nn.LayerNorm(size, eps=EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to vectors [..., D]."""
        return self.norm(x + self.dropout(self.outer(F.gelu(self.inner(x)))))


class TransformerEncoder(nn.Module):
    """A stack of ``Attention`` and ``FeedForward``."""

    def __init__(self, size: int, inner_size: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.ModuleList(Attention(size, heads, dropout) for _ in range(layers))
        self.feed_forward = nn.ModuleList(FeedForward(size, inner_size, dropout) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Causal encoding of right-padded rows [B, L, D]: real positions never see padding, it comes after them."""
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            x = feed_forward(attention(x, x, None, causal=True))
        return x

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """``forward`` at each row's last real position [B, D], without computing the top layer's other positions."""
        for attention, feed_forward in zip(self.attention[:-1], self.feed_forward[:-1], strict=True):
            x = feed_forward(attention(x, x, None, causal=True))
        real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        query = last_position(x, lengths)[:, None]
        return self.feed_forward[-1](self.attention[-1](x, query, real[:, None, None], causal=False))[:, 0]
