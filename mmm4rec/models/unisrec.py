"""UniSRec: universal sequence representations from text (Hou et al., KDD 2022).

Text features go through a mixture of whitenings into SASRec's encoder; users and items meet as cosines over a
temperature. Pre-training contrasts sequences with items and with augmented sequences, which lack items or words; on a
target the encoder stays as pre-trained. The transductive form adds item ids there, the inductive one does without.

Shapes: B rows, M items at hand, D width.
"""

import logging
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from mmm4rec.models.base import Catalogue, Rows, Tables
from mmm4rec.models.items import IdVectors, at_hand, ids_at_hand, text_features
from mmm4rec.models.transformer import TransformerSettings, TransformerSystem
from mmm4rec.nn.augment import drop_items, exchange_items, happens
from mmm4rec.nn.initialise import normal_
from mmm4rec.nn.losses import Duplicates, in_batch_cross_entropy
from mmm4rec.nn.moe import MoEAdaptor
from mmm4rec.nn.unit import unit

log = logging.getLogger(__name__)


class UniSRecSettings(TransformerSettings):
    """Sizes, whether ids are used on a target, and the pre-training objectives."""

    with_id: bool = True
    experts: int = Field(ge=1)
    adaptor_dropout: float = Field(ge=0, lt=1)
    temperature: float = Field(gt=0)
    sequence_weight: float = Field(ge=0)
    drop_ratio: float = Field(ge=0, lt=1)
    duplicates: Duplicates = "masked"
    word_drop_batches: float = Field(0.1, ge=0, le=1)
    word_drop_ratio: float = Field(0.2, ge=0, le=1)


class MoEVectors(nn.Module):
    """The mixture of whitenings over the frozen text features, as stored."""

    text: Tensor

    def __init__(self, catalogue: Catalogue, settings: UniSRecSettings) -> None:
        super().__init__()
        text = text_features(catalogue)
        self.register_buffer("text", text, persistent=False)
        self.adaptor = MoEAdaptor(text.shape[1], settings.hidden_size, settings.experts, settings.adaptor_dropout)

    def table(self, ids: Tensor | None = None) -> Tensor:
        """Vectors [M + 1, D] of ``ids`` [M], or of the whole catalogue."""
        return self.adaptor(at_hand(self.text, ids))


class UniSRec(TransformerSystem):
    """The encoder over whitened text, with ids on a target if asked for."""

    Settings = UniSRecSettings
    settings: UniSRecSettings
    reads_text_dropped = True
    text_dropped: Tensor | None

    item: MoEVectors

    def __init__(self, settings: UniSRecSettings, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, MoEVectors(catalogue, settings))
        self.ids: IdVectors | None = None
        if settings.with_id and not pretraining:
            self.ids = IdVectors(catalogue, settings.hidden_size)
            self.ids.apply(normal_)
        dropped = catalogue.text_dropped if pretraining and settings.word_drop_batches else None
        self.register_buffer("text_dropped", None if dropped is None else dropped.float(), persistent=False)
        if pretraining and catalogue.text_dropped is None:
            log.info("no features of texts with words left out: every augmented row has items left out instead")
        elif pretraining:
            log.info(
                "augmented rows: texts with words left out in %g %% of the batches", 100 * settings.word_drop_batches
            )

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """Item vectors x and candidates x / ||x|| / tau, [M + 1, D] each, and the items' ids [M + 1].

        By the ids the few batches that need vectors of texts that lack words make them.
        """
        x = self.item.table(ids)
        if self.ids is not None:
            x = x + self.ids.table(ids)
        return x, unit(x) / self.settings.temperature, ids_at_hand(self.n_items, ids, x.device)

    def candidates(self, tables: Tables) -> Tensor:
        """Vectors [M, D] of length 1 / tau."""
        return tables[1][1:]

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """User vectors [B, D] of length one."""
        return unit(super().encode(tables, rows))

    def pretrain_loss(self, tables: Tables, rows: Rows) -> Tensor:
        """Sequence-item and sequence-sequence contrast, means over the batch.

        In both, other rows with the same target are no negatives, or negatives of score 0 (``duplicates``).
        """
        s = self.settings
        copy = self.augmented(tables, rows)
        users = self.users(tables, rows)
        augmented = self.users(*copy) / s.temperature
        to_item = in_batch_cross_entropy(users, tables[1][rows.targets], rows.targets, s.duplicates)
        to_row = in_batch_cross_entropy(users, augmented, rows.targets, s.duplicates)
        return to_item + s.sequence_weight * to_row

    def augmented(self, tables: Tables, rows: Rows) -> tuple[Tables, Rows]:
        """A copy of the rows that lacks items or, in a share of the batches, has texts that lack words for some items.

        Returns:
            The copy's tables, in which vectors by texts that lack words stand below the others, and its rows.
        """
        s = self.settings
        if self.text_dropped is not None and happens(s.word_drop_batches):
            x, _, ids = tables
            both = torch.cat([x, self.item.adaptor(self.text_dropped[ids])])
            return (both,), replace(rows, items=exchange_items(rows.items, s.word_drop_ratio, len(x)))
        items, lengths = drop_items(rows.items, rows.lengths, s.drop_ratio)
        return tables, Rows(items, lengths, rows.targets)

    def frozen(self) -> tuple[str, ...]:
        """Positions and the encoder; the adaptor, the norm below the encoder and ids are trained on a target."""
        return "position.", "encoder."


MODEL = UniSRec
