"""Post-norm Transformer encoder of SASRec and its relatives, in RecBole's form.

Shapes: B rows, L positions, D width, H heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmm4rec.nn.dropout import Dropout

EPS = 1e-12


def last_position(x: Tensor, lengths: Tensor) -> Tensor:
    """The vector at each row's last real position: x [B, L, D], lengths [B] -> [B, D]."""
    return x[torch.arange(len(x), device=x.device), lengths - 1]


class Attention(nn.Module):
    """Multi-head self-attention with residual: LN(x + dropout(W_o softmax(q k^T / sqrt(D/H)) v))."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        assert size % heads == 0, (size, heads)
        self.heads = heads
        self.dropout = Dropout(dropout)
        self.query = nn.Linear(size, size)
        self.key_value = nn.Linear(size, 2 * size)
        self.out = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size, eps=EPS)

    def forward(self, x: Tensor, query: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Attend from ``query`` [B, Q, D] to ``x`` [B, L, D]; ``mask`` [B, 1, Q, L] bool, True where allowed."""
        q = self.query(query).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in self.key_value(x).chunk(2, dim=-1))
        dropout = self.dropout.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        y = self.out(y.transpose(1, 2).flatten(2))
        return self.norm(query + self.dropout(y))


class FeedForward(nn.Module):
    """Position-wise network with residual: LN(x + dropout(W_2 gelu(W_1 x)))."""

    def __init__(self, size: int, inner_size: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(size, inner_size)
        self.outer = nn.Linear(inner_size, size)
        self.norm = nn.LayerNorm(size, eps=EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to vectors [..., D]."""
        return self.norm(x + self.dropout(self.outer(F.gelu(self.inner(x)))))


class TransformerEncoder(nn.Module):
    """A stack of ``Attention`` and ``FeedForward``."""

    def __init__(self, size: int, inner_size: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.ModuleList(Attention(size, heads, dropout) for _ in range(layers))
        self.feed_forward = nn.ModuleList(FeedForward(size, inner_size, dropout) for _ in range(layers))

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Encode rows [B, L, D]: causally, or every position by all those that ``real`` [B, L] bool names.

        Causal rows are right-padded: their real positions never see padding, it comes after them.
        """
        return self._layers(x, None if real is None else real[:, None, None], len(self.attention))

    def last(self, x: Tensor, lengths: Tensor, *, bidirectional: bool = False) -> Tensor:
        """``forward`` at each row's last real position [B, D], without computing the top layer's other positions.

        Args:
            x: [B, L, D], right-padded.
            lengths: [B] int64, real positions of each row.
            bidirectional: all real positions see each other.
        """
        real = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[:, None, None]
        x = self._layers(x, real if bidirectional else None, len(self.attention) - 1)
        query = last_position(x, lengths)[:, None]
        return self.feed_forward[-1](self.attention[-1](x, query, real, causal=False))[:, 0]

    def _layers(self, x: Tensor, mask: Tensor | None, count: int) -> Tensor:
        """The lowest ``count`` layers; causal without a mask [B, 1, 1, L]."""
        for attention, feed_forward in zip(self.attention[:count], self.feed_forward[:count], strict=True):
            x = feed_forward(attention(x, x, mask, causal=mask is None))
        return x
