"""What SASRec and its relatives share: items and positions through a causal Transformer (Kang & McAuley, ICDM 2018).

Shapes: B rows, L positions, M items at hand, D width.
"""

from typing import ClassVar, Protocol

from pydantic import Field, model_validator
from torch import Tensor, nn

from mmm4rec.models.base import Catalogue, Rows, Settings, System, Tables
from mmm4rec.nn.dropout import Dropout
from mmm4rec.nn.initialise import normal_
from mmm4rec.nn.transformer import EPS, TransformerEncoder


class TransformerSettings(Settings):
    """Sizes and dropout of the encoder."""

    hidden_size: int = Field(ge=1)
    inner_size: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerSettings":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        return self


class ItemEncoder(Protocol):
    """A module that gives items their vectors."""

    def table(self, ids: Tensor | None = None) -> Tensor:
        """Vectors [M + 1, D] of ``ids`` [M], or of the whole catalogue; row 0 pads."""


class TransformerSystem(System):
    """Item vectors and position embeddings, a causal Transformer, scores by the same item vectors."""

    Settings: ClassVar[type[Settings]] = TransformerSettings
    settings: TransformerSettings
    item: ItemEncoder

    def __init__(self, settings: TransformerSettings, catalogue: Catalogue, item: ItemEncoder) -> None:
        super().__init__(settings, catalogue)
        s = settings
        self.item = item
        self.position = nn.Embedding(s.max_length, s.hidden_size)
        self.norm = nn.LayerNorm(s.hidden_size, eps=EPS)
        self.dropout = Dropout(s.dropout)
        self.encoder = TransformerEncoder(s.hidden_size, s.inner_size, s.layers, s.heads, s.dropout)
        self.apply(normal_)

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """The item vectors [M + 1, D]."""
        return (self.item.table(ids),)

    def embed(self, items: Tensor, position: Tensor | None = None) -> Tensor:
        """What the encoder gets [..., L, D] of item vectors [..., L, D].

        ``position`` [..., L] int64 of each; if not given, 0 is the oldest kept event.
        """
        at = self.position.weight[: items.shape[-2]] if position is None else self.position(position)
        return self.dropout(self.norm(items + at))

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """Hidden state of the last event [B, D]."""
        return self.encoder.last(self.embed(nn.functional.embedding(rows.items, tables[0])), rows.lengths)
