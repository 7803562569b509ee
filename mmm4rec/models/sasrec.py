"""SASRec: self-attention over items (Kang & McAuley, ICDM 2018), trained with full cross-entropy.

SASRec_T, its variant of the paper's Table III, knows items by their text alone.
"""

from mmm4rec.models.base import Catalogue
from mmm4rec.models.items import ItemVectors, item_vectors
from mmm4rec.models.transformer import TransformerSettings, TransformerSystem


class SASRecSettings(TransformerSettings):
    """Sizes and dropout, and what an item is known by."""

    items: ItemVectors = "ids"


class SASRec(TransformerSystem):
    """The encoder over item vectors, learned by id or mapped from text."""

    Settings = SASRecSettings
    settings: SASRecSettings

    def __init__(self, settings: SASRecSettings, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, item_vectors(settings.items, catalogue, settings.hidden_size))


MODEL = SASRec
