"""Popularity: every user is offered the items with the most training events."""

import torch
from torch import Tensor

from mmm4rec.models.base import Catalogue, Rows, Settings, System, Tables


class Pop(System):
    """Scores are the numbers of training events; nothing is trained."""

    popularity: Tensor

    def __init__(self, settings: Settings, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, pretraining=pretraining)
        assert catalogue.popularity is not None
        self.register_buffer("popularity", catalogue.popularity.float()[:, None])

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """[N + 1, 1] events an item."""
        assert ids is None, "popularity is not trained, hence never asked for some items only"
        return (self.popularity,)

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """The same vector for every user: [B, 1] ones."""
        return torch.ones(len(rows.lengths), 1, device=self.popularity.device)


MODEL = Pop
