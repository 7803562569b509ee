"""Vectors of items: learned by id, or mapped from the frozen features of their text.

Shapes: N items of the catalogue, M items at hand, F encoder width, D width of the vectors. Row 0 pads.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmm4rec.errors import UserError
from mmm4rec.models.base import Catalogue

ItemVectors = Literal["ids", "text"]


class IdVectors(nn.Embedding):
    """A learned vector an item; the padding's is zero."""

    def __init__(self, catalogue: Catalogue, width: int) -> None:
        super().__init__(catalogue.n_items + 1, width, padding_idx=0)

    def table(self, ids: Tensor | None = None) -> Tensor:
        """Vectors [M + 1, D] of ``ids`` [M], or of the whole catalogue."""
        return at_hand(self.weight, ids)


class TextVectors(nn.Linear):
    """W t + b of the frozen text features t, as stored; items without text, and the padding, have b."""

    text: Tensor

    def __init__(self, catalogue: Catalogue, width: int) -> None:
        text = text_features(catalogue)
        super().__init__(text.shape[1], width)
        self.register_buffer("text", text, persistent=False)

    def table(self, ids: Tensor | None = None) -> Tensor:
        """Vectors [M + 1, D] of ``ids`` [M], or of the whole catalogue."""
        return self(at_hand(self.text, ids))


def item_vectors(kind: ItemVectors, catalogue: Catalogue, width: int) -> IdVectors | TextVectors:
    """The item encoder that a system's setting names.

    Raises:
        UserError: text is asked for and the domain has none.
    """
    return IdVectors(catalogue, width) if kind == "ids" else TextVectors(catalogue, width)


def require_features(system: str, catalogue: Catalogue) -> None:
    """Refuse a domain of which a multi-modal system could see nothing.

    Raises:
        UserError: it has neither text nor image features.
    """
    if catalogue.text is None and catalogue.image is None:
        raise UserError(
            f"{system}: the domain has neither text nor image features; run `mmm4rec embed` or bring `features`"
        )


def text_features(catalogue: Catalogue) -> Tensor:
    """Text features as stored, [N + 1, F] float32; rows of items without text are zero.

    Raises:
        UserError: the domain has none.
    """
    if catalogue.text is None:
        raise UserError(
            "this system reads text, and there are no text features: bring `features` that have, or, of a system of "
            "your own, let `reads` in its settings file name `text`"
        )
    return catalogue.text.float()


def at_hand(table: Tensor, ids: Tensor | None) -> Tensor:
    """Rows [M + 1, ...] of a table [N + 1, ...], the padding's and those of ``ids`` [M]; None: the table itself."""
    return table if ids is None else table[F.pad(ids, (1, 0))]


def ids_at_hand(n_items: int, ids: Tensor | None, device: torch.device) -> Tensor:
    """What ``at_hand`` gives of a table of the items' own ids, [M + 1] int64, without such a table."""
    return torch.arange(n_items + 1, device=device) if ids is None else F.pad(ids, (1, 0))
