"""FDSA: self-attention over items beside self-attention over their features (Zhang et al., IJCAI 2019).

The feature of an item is its frozen text, so that the paper's attention over several features of an item has nothing
to choose from. Shapes: B rows, M items at hand, D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmm4rec.models.base import Catalogue, Rows, Tables
from mmm4rec.models.items import IdVectors, TextVectors
from mmm4rec.models.transformer import TransformerSettings, TransformerSystem
from mmm4rec.nn.initialise import normal_
from mmm4rec.nn.transformer import TransformerEncoder


class FDSASettings(TransformerSettings):
    """Sizes and dropout of both encoders, and what published code does otherwise."""

    defects: list[Literal["noise_features"]] = Field([])


class FDSA(TransformerSystem):
    """Two encoders that share positions, norm and dropout; their last states together ask the item vectors."""

    Settings = FDSASettings
    settings: FDSASettings

    def __init__(self, settings: FDSASettings, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        s = settings
        super().__init__(s, catalogue, IdVectors(catalogue, s.hidden_size))
        self.feature = TextVectors(catalogue, s.hidden_size)
        self.feature_encoder = TransformerEncoder(s.hidden_size, s.inner_size, s.layers, s.heads, s.dropout)
        self.join = nn.Linear(2 * s.hidden_size, s.hidden_size)
        for module in (self.feature, self.feature_encoder, self.join):
            module.apply(normal_)
        if "noise_features" in s.defects:  # persistent: the weights mean nothing without it
            self.feature.register_buffer("text", 0.02 * torch.randn_like(self.feature.text))

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """Item vectors e and features ReLU(W t + b), [M + 1, D] each."""
        return self.item.table(ids), F.relu(self.feature.table(ids))

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """User vectors [B, D]: both last states, joined by a linear map, normed and dropped out."""
        encoders = (self.encoder, self.feature_encoder)
        states = [
            encoder.last(self.embed(F.embedding(rows.items, table)), rows.lengths)
            for encoder, table in zip(encoders, tables, strict=True)
        ]
        return self.dropout(self.norm(self.join(torch.cat(states, dim=-1))))


MODEL = FDSA
