"""S3-Rec: self-supervised learning by mutual information before sequential recommendation (Zhou et al., CIKM 2020).

A first stage on the target's training rows, encoded in both directions, with four objectives that tie items, their
attributes, rows and segments of rows to each other; then SASRec with what was learned. Attributes are brands and
categories; in a domain without any, every item is its own one attribute, described by its text, as in UniSRec's
comparisons.

Shapes: B rows, L positions, N items, A attributes, of which an item has up to C and a step draws K, D width; P real
positions of a batch or of a part of it.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmm4rec.models.base import Catalogue, Rows, Tables, by_length
from mmm4rec.models.items import IdVectors, TextVectors, at_hand
from mmm4rec.models.transformer import TransformerSettings, TransformerSystem
from mmm4rec.nn.initialise import normal_
from mmm4rec.nn.negatives import unseen

log = logging.getLogger(__name__)


class S3RecSettings(TransformerSettings):
    """Sizes, and the weights of the first stage's objectives."""

    mask_ratio: float = Field(gt=0, lt=1)
    #: runs that do not say were made with text
    attribute_source: Literal["metadata", "text"] = "text"
    attributes: int = Field(ge=1)
    aap_weight: float = Field(ge=0)
    mip_weight: float = Field(ge=0)
    map_weight: float = Field(ge=0)
    sp_weight: float = Field(ge=0)
    defects: list[Literal["noise_features", "misaligned_labels", "shifted_positions"]] = Field([])


class LearnedAttributes(nn.Embedding):
    """A learned vector an attribute; that for none is zero."""

    def __init__(self, n_attributes: int, width: int) -> None:
        super().__init__(n_attributes + 1, width, padding_idx=0)

    def table(self, ids: Tensor) -> Tensor:
        """f_a [M + 1, D] of ``ids`` [M], behind a row for no attribute."""
        return at_hand(self.weight, ids)


class TextAttributes(TextVectors):
    """f_a = ReLU(W t + b) of the text t of the item that attribute a is."""

    def table(self, ids: Tensor | None = None) -> Tensor:
        """f_a [M + 1, D] of ``ids`` [M], behind a row for no attribute."""
        return F.relu(super().table(ids))


class FirstStage(nn.Module):
    """What the first stage learns beside the encoder, and fine-tuning has no use for.

    Attributes:
        has: [N + 1, C] int64, the attributes of each item, 0 pads.
        described: [N + 1] bool, items of which attributes are known; AAP and MAP leave the others out.
        known: [A] int64, the attributes.
        largest: of the numbers in ``has``.
    """

    has: Tensor
    described: Tensor
    known: Tensor
    largest: int

    def __init__(self, settings: S3RecSettings, catalogue: Catalogue) -> None:
        super().__init__()
        width = settings.hidden_size
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.attribute: LearnedAttributes | TextAttributes
        by_text = settings.attribute_source == "text" or "noise_features" in settings.defects  # noise stands for texts
        has = None if by_text else catalogue.attributes
        if has is None:
            self.attribute = TextAttributes(catalogue, width)
            described = self.attribute.text.any(dim=1)
            known = described.nonzero()[:, 0]
            has = torch.arange(len(described), device=described.device)[:, None]
            log.info("brands and categories are no attributes here: each item's text vector is the one that it has")
        else:
            described = has.any(dim=1)
            known = torch.arange(1, int(has.max()) + 1, device=has.device)
            self.attribute = LearnedAttributes(len(known), width)
            log.info("attributes: %d brands and categories, of %d items", len(known), int(described.sum()))
        self.largest = int(has.max())
        self.aap = nn.Linear(width, width)
        self.mip = nn.Linear(width, width)
        self.map = nn.Linear(width, width)
        self.sp = nn.Linear(width, width)
        self.apply(normal_)
        for name, buffer in (("has", has), ("described", described), ("known", known)):
            self.register_buffer(name, buffer, persistent=False)
        if "noise_features" in settings.defects:
            assert isinstance(self.attribute, TextAttributes)
            # persistent: the weights mean nothing without it
            self.attribute.register_buffer("text", 0.02 * torch.randn_like(self.attribute.text))


@dataclass(frozen=True)
class Attributes:
    """The attributes of a step: those that positions are held against, and those that their items have.

    Attributes:
        vectors: [K + M + 1, D], f_a.
        row: [largest + 1] int64, where an attribute stands in ``vectors``.
        drawn: [K] int64, those that every position is held against.
        is_drawn: [largest + 1] bool.
        scale: A / K, so that sums over the drawn ones estimate sums over all.
    """

    vectors: Tensor
    row: Tensor
    drawn: Tensor
    is_drawn: Tensor
    scale: float


@dataclass(frozen=True)
class Draws:
    """What is random about a batch's objectives.

    Attributes:
        masked: [B, L] bool, real positions to be told from the others.
        negatives: [B, L] int64, for each position an item that its row does not hold.
        segment: [B, L] bool, a run of up to half the row's positions; of rows of one item the only one.
        foreign: [B, L] int64, in the segment's places another segment of the batch.
    """

    masked: Tensor
    negatives: Tensor
    segment: Tensor
    foreign: Tensor


def draw(rows: Rows, events: Tensor, n_items: int, mask_ratio: float) -> Draws:
    """Draw masks, negatives and segments.

    Args:
        rows: B of them.
        events: [P] int64, the items of the whole batch's rows, row after row: what foreign segments are cut from.
        n_items: N.
        mask_ratio: probability that an item is masked.
    """
    items, lengths = rows.items, rows.lengths
    position = torch.arange(items.shape[1], device=items.device)
    masked = (items > 0) & (torch.rand(items.shape, device=items.device) < mask_ratio)
    size = 1 + below((lengths // 2).clamp(min=1))
    start = below(lengths - size + 1)
    foreign_start = below(len(events) - size + 1)
    offset = position - start[:, None]
    segment = (offset >= 0) & (offset < size[:, None])
    foreign = events[(foreign_start[:, None] + offset).clamp(0, len(events) - 1)] * segment
    return Draws(masked, unseen(items, n_items), segment, foreign)


def below(limit: Tensor) -> Tensor:
    """For each limit [B] int64 > 0 a uniform number of 0, 1, ..., limit - 1."""
    return torch.minimum((torch.rand(limit.shape, device=limit.device) * limit).long(), limit - 1)


class S3Rec(TransformerSystem):
    """SASRec whose weights start from a self-supervised first stage on the same domain."""

    Settings = S3RecSettings
    settings: S3RecSettings

    def __init__(self, settings: S3RecSettings, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, IdVectors(catalogue, settings.hidden_size))
        self.first_stage = FirstStage(settings, catalogue)

    def frozen(self) -> Iterable[str]:
        """What only the first stage uses."""
        return ("first_stage.",)

    # -- the first stage

    def pretrain_loss(self, tables: Tables, rows: Rows) -> Tensor:
        """Weighted sum of the four objectives; sums over a row's positions and over attributes, the mean over rows.

        Rows are what precedes a training event. ``tables`` are those of the whole catalogue.
        """
        assert len(tables[0]) == self.n_items + 1, "the first stage needs the tables of the whole catalogue"
        events = rows.items[rows.items > 0]
        table = torch.cat([tables[0], self.first_stage.mask[None]])  # row N + 1: the mask
        objectives = partial(self._objectives, table, events, self._attributes(events))
        return by_length(objectives, rows).mean()

    def _attributes(self, events: Tensor) -> Attributes:
        """Draw attributes for a step, and compute them and those of the batch's items."""
        stage = self.first_stage
        order = torch.randperm(len(stage.known), device=events.device)
        drawn = stage.known[order[: self.settings.attributes]]
        own = stage.has[events]
        ids = torch.cat([drawn, own[own > 0]]).unique()
        row = events.new_zeros(stage.largest + 1)
        row[ids] = torch.arange(1, len(ids) + 1, device=events.device)
        is_drawn = torch.zeros_like(row, dtype=torch.bool)
        is_drawn[drawn] = True
        return Attributes(stage.attribute.table(ids), row, drawn, is_drawn, len(stage.known) / max(1, len(drawn)))

    def _objectives(self, table: Tensor, events: Tensor, attributes: Attributes, rows: Rows) -> Tensor:
        """The four objectives of each row, weighted and summed, [B]."""
        s, stage, items = self.settings, self.first_stage, rows.items
        draws = draw(rows, events, self.n_items, s.mask_ratio)
        real = items > 0
        seen = items.masked_fill(draws.masked, self.n_items + 1)
        states = self.encoder(self.embed(F.embedding(seen, table), self._position(rows)), real)
        masked = draws.masked[real]  # [P], as everything that follows
        states, row = states[real], real.nonzero()[:, 0]

        label = self._labels(rows)[real]
        asked = torch.where(masked[:, None], stage.map(states), stage.aap(states))
        # that nothing is known of an item does not tell that it has no attribute
        weight = torch.where(masked, s.map_weight, s.aap_weight) * (stage.described[label] | (label == 0))
        attribute_loss = weight * attribute_prediction(asked, stage.has[label], attributes)

        asked = stage.mip(states[masked])
        own, other = (table[x[real][masked]] for x in (items, draws.negatives))
        item_loss = s.mip_weight * contrast(asked, own, other)

        # a row of one item has no segment and no rest
        segment_loss = s.sp_weight * (rows.lengths > 1) * self._segment_prediction(table, rows, draws)
        return segment_loss.index_add(0, row, attribute_loss).index_add(0, row[masked], item_loss)

    def _labels(self, rows: Rows) -> Tensor:
        """The item whose attributes are to be told at each position [B, L], the one that stands there; 0 is none.

        With the defect ``misaligned_labels`` the items are taken as they stand from the left, and the states as they
        stand in a row that is padded on the left up to max_length.
        """
        if "misaligned_labels" not in self.settings.defects:
            return rows.items
        index = left_padded(rows, self.max_length)
        label = rows.items.gather(1, index.clamp(max=rows.items.shape[1] - 1))
        return label.where(index < rows.lengths[:, None], 0)

    def _position(self, rows: Rows) -> Tensor | None:
        """Positions [B, L] in the first stage; None: those of the second.

        With the defect ``shifted_positions`` they are counted in a row that is padded on the left up to max_length, so
        that the last event stands last; fine-tuning counts from the oldest event on.
        """
        if "shifted_positions" not in self.settings.defects:
            return None
        return left_padded(rows, self.max_length).clamp(max=self.max_length - 1)

    def _segment_prediction(self, table: Tensor, rows: Rows, draws: Draws) -> Tensor:
        """Whether the masked segment or a foreign one belongs to the rest of the row (SP), [B]."""
        mask = self.n_items + 1
        rest = rows.items.masked_fill(draws.segment, mask)
        own, other = (x.masked_fill(~draws.segment, mask) for x in (rows.items, draws.foreign))
        position = self._position(rows)
        at = None if position is None else position.repeat(3, 1)
        x = self.embed(F.embedding(torch.cat([rest, own, other]), table), at)
        states = self.encoder.last(x, rows.lengths.repeat(3), bidirectional=True)
        rest, own, other = states.chunk(3)
        return contrast(self.first_stage.sp(rest), own, other)


def left_padded(rows: Rows, max_length: int) -> Tensor:
    """Where each event [B, L] would stand if the padding of a row up to ``max_length`` came first."""
    return torch.arange(rows.items.shape[1], device=rows.items.device) + (max_length - rows.lengths)[:, None]


def attribute_prediction(asked: Tensor, has: Tensor, attributes: Attributes) -> Tensor:
    """Binary cross-entropy of each attribute at each position, summed over attributes (AAP and MAP), [P].

    Only the position's own attributes and the drawn ones are computed; the sum over those drawn that are not its own is
    scaled up to all such. Q are the pairs of a position and an attribute of its own.

    Args:
        asked: [P, D], W s_t.
        has: [P, C] int64, the attributes that hold, 0 pads.
        attributes: of the step.
    """
    logits = asked @ attributes.vectors[attributes.row[attributes.drawn]].T
    position, column = has.nonzero(as_tuple=True)  # [Q]
    attribute = has[position, column]
    own = (asked[position] * attributes.vectors[attributes.row[attribute]]).sum(-1).float()
    others = F.softplus(logits.float()).sum(-1)
    others = others.index_add(0, position, -F.softplus(own) * attributes.is_drawn[attribute])
    return (attributes.scale * others).index_add(0, position, F.softplus(-own))


def contrast(asked: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """-log sigmoid(sigmoid(asked . own) - sigmoid(asked . other)) of vectors [P, D]: [P]."""
    scores = [(asked * x).sum(-1).float().sigmoid() for x in (own, other)]
    return -F.logsigmoid(scores[0] - scores[1])


MODEL = S3Rec
