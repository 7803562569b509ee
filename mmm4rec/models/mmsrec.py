"""MMSRec: masked items of two modalities, items and rows by one network (Song et al., arXiv 2304.13277).

An item is a token for each modality that it has; a row is the tokens of its items and of a masked slot that stands for
the target. One bidirectional Transformer reads both: a row, and an item alone as a row of one slot. What it makes of
the masked slot is compared with what it makes of every item, by cosine.

Shapes: B rows, L events, S = L + 1 slots, T modalities (1 or 2), W tokens of a row, N items, M items at hand, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmm4rec.models.base import Catalogue, Rows, System, Tables, by_length, chunks_by_length
from mmm4rec.models.items import at_hand, require_features
from mmm4rec.models.transformer import TransformerSettings
from mmm4rec.nn.bidirectional import Encoder
from mmm4rec.nn.dropout import Dropout
from mmm4rec.nn.losses import full_cross_entropy

MODALITIES = ("text", "image")
SMALL = 0.1  # how positions and kinds start: were they as large as features, all items would start much the same
ABSENT = -1e4  # below whatever a LayerNorm gives: the maximum never takes it
#: items encoded at a time: on a processor, what stays in its caches
ITEMS_AT_ONCE = {"cpu": 1024, "cuda": 8192}
#: of more items than these (5 GB at the authors' sizes), what their gradient needs is not kept but computed again
KEPT_ITEMS = 32768


class MMSRecSettings(TransformerSettings):
    """Sizes, dropout and what is masked; ``config/systems/mmsrec.yaml`` says where each value comes from."""

    max_length: int = Field(19, ge=1)
    embedding_dropout: float = Field(ge=0, lt=1)
    temperature: float = Field(gt=0)
    masked: float = Field(ge=0, le=1)
    masked_random: float = Field(ge=0, le=1)
    masked_same: float = Field(ge=0, le=1)
    alignment: float = Field(ge=0)

    @model_validator(mode="after")
    def _shares_fit(self) -> "MMSRecSettings":
        if self.masked_random + self.masked_same > 1:
            raise ValueError("masked_random and masked_same are shares of the masked items: their sum is above 1")
        return self


@dataclass(frozen=True, kw_only=True)
class Tokens(Rows):
    """Rows of tokens: the slots' tokens that are there, side by side, in whatever number.

    Attributes:
        items: [B, W] int64 rows of the token table [(M + 1) T, D]: T * item + modality.
        lengths: [B] int64 number of tokens, at least 1.
        targets: [B, A] int64, what is to be found in each slot asked for, 0 where nothing is asked.
        positions: [B, W] int64 rows of the position table.
        places: [B, A, T] int64, where in its row the slot's token of each modality is; -1 where it has none.
    """

    positions: Tensor
    places: Tensor

    def select(self, index: slice | Tensor, length: int | None = None) -> "Tokens":
        """Some of the rows, trimmed to ``length`` tokens."""
        rows = super().select(index, length)
        positions = self.positions[index][:, : rows.items.shape[1]]
        return Tokens(rows.items, rows.lengths, rows.targets, positions=positions, places=self.places[index])


class Modality(nn.Module):
    """What a modality has of its own: from features to tokens, and from a token's state to a vector."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.adapter = nn.Linear(features, size)
        self.norm = nn.LayerNorm(size)
        self.kind = nn.Parameter(SMALL * torch.randn(size))
        self.out = nn.Linear(size, size)
        self.out_norm = nn.LayerNorm(size)


class MMSRec(System):
    """Cosines between the masked last slot of a row and single items, both through the same network."""

    Settings = MMSRecSettings
    settings: MMSRecSettings

    def __init__(self, settings: MMSRecSettings, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, pretraining=pretraining)
        require_features("mmsrec", catalogue)
        s = settings
        self.features = nn.Module()
        self.modalities = nn.ModuleDict()
        for name in MODALITIES:
            if (values := getattr(catalogue, name)) is not None:
                self.features.register_buffer(name, values.float(), persistent=False)
                self.modalities[name] = Modality(values.shape[1], s.hidden_size)
        has = torch.stack([available(catalogue, name) for name in self.modalities], dim=1)
        self.register_buffer("has", has, persistent=False)
        self.has: Tensor
        self.mask = nn.Parameter(torch.randn(s.hidden_size))
        self.position = nn.Embedding(s.max_length + 1, s.hidden_size)
        nn.init.normal_(self.position.weight, std=SMALL)
        self.norm = nn.LayerNorm(s.hidden_size)
        self.dropout = Dropout(s.embedding_dropout)
        self.encoder = Encoder(s.hidden_size, s.inner_size, s.layers, s.heads, s.dropout)

    # -- items

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """Vectors of length 1 [M + 1, D], tokens [M + 1, T, D], which tokens are there [M + 1, T].

        Row 0 is the mask: no padding is ever looked at, it is told by the rows' lengths. An item with neither modality
        is a masked one too, something of which nothing is known.
        """
        has = at_hand(self.has, ids)
        known = has.any(1, keepdim=True)
        tokens = []
        for name, modality in self._modalities():
            x = modality.norm(modality.adapter(at_hand(getattr(self.features, name), ids)))
            tokens.append(torch.where(known, x, self.mask) + modality.kind)
        x = torch.stack(tokens, dim=1)
        return self._items(x, has), x, has

    def _items(self, x: Tensor, has: Tensor) -> Tensor:
        """Vectors [M + 1, D] of single items, each a row of one slot, at position 0."""

        def some(x: Tensor, has: Tensor) -> Tensor:
            shown = torch.arange(len(x), device=x.device)[:, None]
            tokens = pack(shown, shown >= 0, torch.zeros_like(shown), has, torch.ones_like(shown))
            return self._in_chunks(self._vectors, x, tokens)

        if not len(x):
            return x[:, 0]
        again = len(x) > KEPT_ITEMS and torch.is_grad_enabled()
        encode = partial(checkpoint, some, use_reentrant=False) if again else some
        at_once = ITEMS_AT_ONCE[x.device.type]
        return torch.cat([encode(*part) for part in zip(x.split(at_once), has.split(at_once), strict=True)])

    # -- rows

    def users(self, tables: Tables, rows: Rows) -> Tensor:
        """User vectors [B, D] of length 1 / temperature; rows are chunked by their number of tokens."""
        return self._in_chunks(self._vectors, tables[1], self._ask_last(tables, rows)) / self.settings.temperature

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """User vectors [B, D]: the masked last slot, as a vector of length 1 / temperature."""
        return self._vectors(tables[1].flatten(0, 1), self._ask_last(tables, rows)) / self.settings.temperature

    def _ask_last(self, tables: Tables, rows: Rows) -> Tokens:
        items, slot = self._slots(rows)
        tokens = pack(
            items, slot <= rows.lengths[:, None], self._positions(rows, slot), tables[2], torch.ones_like(items)
        )
        last = tokens.places[torch.arange(len(items), device=items.device), rows.lengths]
        return replace(tokens, places=last[:, None], targets=rows.targets[:, None])

    def _slots(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Items [B, S] with a masked last slot (0) behind the row's end, and the slots' numbers [S]."""
        slot = torch.arange(rows.items.shape[1] + 1, device=rows.items.device)
        return F.pad(rows.items, (0, 1)).masked_fill(slot >= rows.lengths[:, None], 0), slot

    def _positions(self, rows: Rows, slot: Tensor) -> Tensor:
        """Positions [B, S] counted from the end, as in rows padded on the left: the last slot has the highest."""
        return (self.max_length - rows.lengths[:, None] + slot).clamp(max=self.max_length)

    # -- the network

    def _vectors(self, x: Tensor, rows: Rows) -> Tensor:
        """Vectors of length 1 [number of slots asked for, D], row after row.

        Args:
            x: [..., D] table that the tokens are rows of.
            rows: the tokens; all slots are asked for if there is one a row.
        """
        tokens = cast(Tokens, rows)
        n_rows, width = tokens.items.shape
        device = x.device
        e = self.dropout(self.norm(F.embedding(tokens.items, x) + self.position(tokens.positions)))
        start = width * torch.arange(n_rows, device=device)[:, None, None]
        wanted, there = start + tokens.places.clamp(min=0), tokens.places >= 0
        wanted, there = wanted.flatten(0, 1), there.flatten(0, 1)
        if tokens.targets.shape[1] > 1:
            asked = tokens.targets.flatten().nonzero()[:, 0]
            wanted, there = wanted[asked], there[asked]
        real = torch.arange(width, device=device) < tokens.lengths[:, None]
        h = self.encoder(e, real, wanted.flatten()).unflatten(0, wanted.shape)
        y = [m.out_norm(m.out(h[:, i])) for i, (_, m) in enumerate(self._modalities())]
        fused = torch.stack(y, 1).masked_fill(~there[..., None], ABSENT).amax(1) if len(y) > 1 else y[0]
        return F.normalize(fused, dim=-1)

    def _in_chunks(self, function: Callable[[Tensor, Rows], Tensor], x: Tensor, tokens: Tokens) -> Tensor:
        """``function`` of the tokens [B, ...], in chunks of rows with similarly many."""
        few, tokens = self._at_hand(x, tokens)
        return by_length(partial(function, few), tokens)

    def _at_hand(self, x: Tensor, tokens: Tokens) -> tuple[Tensor, Tokens]:
        """The rows of table ``x`` that tokens are of, so that no chunk's gradient is as large as it; tokens of them."""
        used, index = tokens.items.unique(return_inverse=True)
        return x.flatten(0, -2)[used], replace(tokens, items=index)

    def _modalities(self) -> list[tuple[str, Modality]]:
        return cast("list[tuple[str, Modality]]", list(self.modalities.items()))

    # -- training

    def finetune_loss(self, tables: Tables, rows: Rows) -> Tensor:
        """B times the mean, over all masked slots, of the cross-entropy over the whole catalogue.

        The last slot is always masked and its target is the row's; each other slot is selected with probability
        ``masked`` (see ``draw_masks``); its target is its own item.
        """
        items, slot = self._slots(rows)
        shown, targets = self.draw_masks(items, rows, n_items=len(tables[0]) - 1)
        tokens = pack(shown, slot <= rows.lengths[:, None], self._positions(rows, slot), tables[2], targets)
        few, tokens = self._at_hand(tables[1], tokens)
        found = [(self._vectors(few, part), part.targets[part.targets > 0] - 1) for _, part in chunks_by_length(tokens)]
        users, wanted = (torch.cat(parts) for parts in zip(*found, strict=True))
        loss = full_cross_entropy(users / self.settings.temperature, self.candidates(tables), wanted, reduction="sum")
        return loss * (len(items) / len(wanted))

    def draw_masks(self, items: Tensor, rows: Rows, n_items: int) -> tuple[Tensor, Tensor]:
        """What the slots show, and what is to be found in them, [B, S] each.

        Args:
            items: [B, S] int64, 0 in the last slot and behind it.
            rows: whose items they are.
            n_items: items that a random one is drawn from.
        """
        s = self.settings
        slot = torch.arange(items.shape[1], device=items.device)
        draw = torch.rand(items.shape, device=items.device)
        selected = (draw < s.masked) & (slot < rows.lengths[:, None])
        to_random, to_same = draw < s.masked * s.masked_random, draw >= s.masked * (1 - s.masked_same)
        other = torch.randint(1, n_items + 1, items.shape, device=items.device)
        shown = torch.where(selected & ~to_same, torch.where(to_random, other, 0), items)
        last = slot == rows.lengths[:, None]
        return shown, torch.where(last, rows.targets[:, None], torch.where(selected, items, 0))

    def pretrain_loss(self, tables: Tables, rows: Rows) -> Tensor:
        """The mean loss of masked items among the items at hand, and the alignment of the batch's target items."""
        loss = self.finetune_loss(tables, rows) / len(rows.lengths)
        if self.settings.alignment:
            loss = loss + self.settings.alignment * self.alignment_loss(tables, rows.targets.unique())
        return loss

    def alignment_loss(self, tables: Tables, items: Tensor) -> Tensor:
        """Mean of the contrasts text-text', image-image', text-image and item-item', where ' is another dropout.

        Each goes over the items that have what it needs; one that fewer than two have is left out.

        Args:
            tables: as from ``item_tables``.
            items: [K] int64 rows of the tables, each once.
        """
        vectors, x, has = tables
        has = has[items]

        def twice(those: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
            """Vectors [K, D] of ``those`` items, with the modalities ``has`` [K, T] alone, in two draws of dropout."""
            one, other = self._items(x[those.repeat(2)], has.repeat(2, 1)).chunk(2)
            return one, other

        n = has.shape[1]
        alone = [torch.arange(n, device=has.device) == m for m in range(n)]
        views = [twice(items[has[:, m]], alone[m].expand(int(has[:, m].sum()), n)) for m in range(n)]
        pairs = list(views)
        if n > 1:
            both = has.all(1)
            pairs.append((views[0][0][both[has[:, 0]]], views[1][0][both[has[:, 1]]]))
            known = has.any(1)
            again = self._items(x[items[known]], has[known])
            pairs.append((vectors[items[known]], again))
        losses = [contrast(a, b, self.settings.temperature) for a, b in pairs if len(a) > 1]
        return torch.stack(losses).mean() if losses else vectors.new_zeros(())

    def carried_over(self, name: str) -> bool:
        """Everything but the position table."""
        return not name.startswith("position.")


def available(catalogue: Catalogue, modality: str) -> Tensor:
    """Which items have the modality, [N + 1] bool; a white picture in the place of a missing one counts."""
    has = getattr(catalogue, f"has_{modality}")
    if modality == "image" and catalogue.missing_image == "white":
        assert catalogue.image is not None
        has = has | (catalogue.image != 0).any(1)
    return cast(Tensor, has)


def pack(items: Tensor, real: Tensor, positions: Tensor, has: Tensor, targets: Tensor) -> Tokens:
    """The tokens of slots, without the modalities that an item lacks and without padding between them.

    Args:
        items: [B, S] int64 rows of the item tables, 0 for the mask.
        real: [B, S] bool, which slots are no padding.
        positions: [B, S] int64.
        has: [M + 1, T] bool, the modalities of an item; one without any shows the mask, which has all.
        targets: [B, S] int64.
    """
    n_modalities = has.shape[1]
    there = has | ~has.any(1, keepdim=True)
    there = there[items] & real[..., None]
    flat = there.flatten(1)
    place, lengths = flat.cumsum(1) - 1, flat.sum(1)
    order = (~flat).to(torch.uint8).argsort(dim=1, stable=True)  # what is there comes first
    codes = n_modalities * items[..., None] + torch.arange(n_modalities, device=items.device)
    codes = codes.masked_fill(~there, 0).flatten(1)
    return Tokens(
        items=codes.gather(1, order),
        lengths=lengths,
        targets=targets,
        positions=positions.repeat_interleave(n_modalities, dim=1).gather(1, order),
        places=place.view_as(there).where(there, -1),
    )


def contrast(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """InfoNCE in both directions, the mean over rows; row k of ``one`` [K, D] belongs to row k of ``other`` [K, D]."""
    same = torch.arange(len(one), device=one.device)
    return (full_cross_entropy(one / temperature, other, same) + full_cross_entropy(other / temperature, one, same)) / 2


MODEL = MMSRec
