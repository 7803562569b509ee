"""Mamba4Rec: a selective state space model over items (Liu et al., arXiv 2403.03900), with full cross-entropy.

Mamba4Rec_T, its variant of the paper's Table III, knows items by their text alone.
"""

from typing import Any, Literal, cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmm4rec.models.base import Catalogue, Rows, Settings, System, Tables
from mmm4rec.models.items import ItemVectors, TextVectors, item_vectors
from mmm4rec.nn.blocks import FeedForward
from mmm4rec.nn.dropout import Dropout
from mmm4rec.nn.initialise import normal_, small_biases_
from mmm4rec.nn.mamba import Mamba, MambaLayer
from mmm4rec.nn.transformer import EPS


class Mamba4RecSettings(Settings):
    """Sizes and dropout, what an item is known by, and defects of the published code to reproduce."""

    items: ItemVectors = "ids"
    hidden_size: int = Field(ge=1)
    inner_size: int = Field(ge=1)
    layers: int = Field(ge=1)
    state_size: int = Field(ge=1)
    conv_width: int = Field(ge=1)
    expand: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    defects: list[Literal["dt_bias_reset"]] = Field([])


class Layer(nn.Module):
    """X1 = LN(drop(Mamba(X)) + X), X2 = LN(X1 + drop(W2 drop(gelu(W1 X1)))); an only layer has X1 without X."""

    def __init__(self, settings: Mamba4RecSettings) -> None:
        super().__init__()
        s = settings
        reset = "dt_bias_reset" in s.defects
        mamba = Mamba(s.hidden_size, s.state_size, s.conv_width, s.expand, reset_steps=reset)
        self.mixer = MambaLayer(mamba, s.hidden_size, s.dropout, EPS, residual=s.layers > 1)
        self.ffn = FeedForward(s.hidden_size, s.inner_size, s.dropout, EPS, F.gelu)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """[B, L, D] to the same; with ``lengths`` [B] to the last positions [B, D]."""
        return cast(Tensor, self.ffn(self.mixer(x, lengths)))


class Mamba4Rec(System):
    """Item vectors without positions, Mamba layers, scores by the same item vectors."""

    Settings = Mamba4RecSettings
    settings: Mamba4RecSettings

    def __init__(self, settings: Any, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, pretraining=pretraining)
        s = self.settings
        self.item = item_vectors(s.items, catalogue, s.hidden_size)
        self.drop = Dropout(s.dropout)
        self.norm = nn.LayerNorm(s.hidden_size, EPS)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.apply(normal_)
        if isinstance(self.item, TextVectors):
            small_biases_(self.item, self.norm)

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """The item vectors [M + 1, D]."""
        return (self.item.table(ids),)

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """Hidden state of the last event [B, D]."""
        x = self.norm(self.drop(F.embedding(rows.items, tables[0])))
        for layer in self.layers:
            x = layer(x, rows.lengths if layer is self.layers[-1] else None)
        return cast(Tensor, x)


MODEL = Mamba4Rec
