"""Mixture of parametric whitenings: UniSRec's map from text features to item vectors (Hou et al., KDD 2022).

Shapes: M items, F feature width, D item width, E experts.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmm4rec.nn.dropout import Dropout

NOISE_FLOOR = 0.01  # added to the noise's standard deviation


class MoEAdaptor(nn.Module):
    """sum_k softmax(g)_k W_k (drop(v) - b_k), g = v W_g, in training g + eps * (softplus(v W_n) + 0.01), eps ~ N(0, 1).

    Every expert draws its own dropout. W_g, W_n and b_k start at zero, so all experts count the same at first.
    """

    def __init__(self, features: int, width: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.experts = nn.Linear(features, experts * width, bias=False)  # W_k, one below the other
        self.shift = nn.Parameter(torch.zeros(experts, features))  # b_k
        self.gate = nn.Parameter(torch.zeros(features, experts))
        self.noise = nn.Parameter(torch.zeros(features, experts))
        self.drop = Dropout(dropout)

    def forward(self, v: Tensor) -> Tensor:
        """Map features [M, F] to [M, D]."""
        logits = v @ self.gate
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(v @ self.noise) + NOISE_FLOOR)
        shares = logits.softmax(-1)
        weights = self.experts.weight.unflatten(0, (len(self.shift), -1))
        # W_k (v - b_k) = W_k v - W_k b_k: no gradient of v's size is needed for b_k
        shifts = (weights @ self.shift[..., None])[..., 0]
        parts = (
            share[:, None] * F.linear(self.drop(v), weight, -shift)
            for share, weight, shift in zip(shares.unbind(-1), weights, shifts, strict=True)
        )
        return reduce(torch.add, parts)
