"""Post-norm Transformer encoder over sets of tokens, each of which sees all others: PyTorch's, first weights included.

It equals ``torch.nn.TransformerEncoder`` with GELU, post-norm, a final LayerNorm and a mask of the keys, but computes
the top layer only where its result is wanted, and does without a comparison where a row is a single token.

Shapes: B rows, W tokens, D width, H heads, S tokens wanted.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mmm4rec.nn.dropout import Dropout


class EncoderLayer(nn.Module):
    """x <- LN(x + dropout(attention(x))), x <- LN(x + dropout(W_2 dropout(gelu(W_1 x))))."""

    def __init__(self, size: int, inner_size: int, heads: int, dropout: float) -> None:
        super().__init__()
        assert size % heads == 0, (size, heads)
        self.heads = heads
        self.query_key_value = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)
        self.inner = nn.Linear(size, inner_size)
        self.outer = nn.Linear(inner_size, size)
        self.outer_norm = nn.LayerNorm(size)
        self.dropout = Dropout(dropout)
        nn.init.xavier_uniform_(self.query_key_value.weight)
        nn.init.zeros_(self.query_key_value.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, mask: Tensor, wanted: Tensor | None) -> Tensor:
        """Apply to x [B, W, D]; ``mask`` [B, 1, 1, W] and ``wanted`` as in ``Encoder``."""
        y = self._attend(x, mask)
        if wanted is not None:
            x, y = (z.flatten(0, 1).index_select(0, wanted) for z in (x, y))
        x = self.norm(x + self.dropout(self.out(y)))
        return self.outer_norm(x + self.dropout(self.outer(self.dropout(F.gelu(self.inner(x))))))

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        size = x.shape[-1]
        if x.shape[1] == 1:  # the weight of a single key is one, or dropped
            weight, bias = self.query_key_value.weight[2 * size :], self.query_key_value.bias[2 * size :]
            v = F.linear(x, weight, bias).unflatten(-1, (self.heads, -1))
            return (v * self.dropout(v.new_ones(len(x), 1, self.heads, 1))).flatten(2)
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2).flatten(2)


class Encoder(nn.Module):
    """A stack of ``EncoderLayer`` and a LayerNorm."""

    def __init__(self, size: int, inner_size: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(size, inner_size, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, real: Tensor, wanted: Tensor) -> Tensor:
        """States [S, D] of the tokens wanted.

        Args:
            x: [B, W, D] tokens.
            real: [B, W] bool, which are no padding; at least one a row.
            wanted: [S] int64, b * W + w of each token wanted.
        """
        mask = real[:, None, None]
        for layer in self.layers[:-1]:
            x = layer(x, mask, None)
        return self.norm(self.layers[-1](x, mask, wanted))
