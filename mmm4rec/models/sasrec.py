"""SASRec: self-attention over items (Kang & McAuley, ICDM 2018), trained with full cross-entropy.

SASRec_T, its variant of the paper's Table III, knows items by their text alone.
"""

from pydantic import Field, model_validator
from torch import Tensor, nn

from mmm4rec.models.base import Catalogue, Rows, Settings, System, Tables
from mmm4rec.models.items import ItemVectors, item_vectors
from mmm4rec.nn.initialise import normal_
from mmm4rec.nn.transformer import EPS, TransformerEncoder


class SASRecSettings(Settings):
    """Sizes and dropout, and what an item is known by."""

    items: ItemVectors = "ids"
    hidden_size: int = Field(ge=1)
    inner_size: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> "SASRecSettings":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        return self


class SASRec(System):
    """Item vectors and position embeddings, a causal Transformer, scores by the same item vectors."""

    Settings = SASRecSettings
    settings: SASRecSettings

    def __init__(self, settings: SASRecSettings, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, pretraining=pretraining)
        s = settings
        self.item = item_vectors(s.items, catalogue, s.hidden_size)
        self.position = nn.Embedding(s.max_length, s.hidden_size)
        self.norm = nn.LayerNorm(s.hidden_size, eps=EPS)
        self.dropout = nn.Dropout(s.dropout)
        self.encoder = TransformerEncoder(s.hidden_size, s.inner_size, s.layers, s.heads, s.dropout)
        self.apply(normal_)

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """The item vectors [M + 1, D]."""
        return (self.item.table(ids),)

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """Hidden state of the last event [B, D]; position 0 is the oldest kept event."""
        x = nn.functional.embedding(rows.items, tables[0]) + self.position.weight[: rows.items.shape[1]]
        return self.encoder.last(self.dropout(self.norm(x)), rows.lengths)


MODEL = SASRec
