"""MMM4Rec: multi-modal Mamba for transferable sequential recommendation (arXiv 2506.02916).

Text and image of every item are adapted to one width (eq. 1-2); both streams run through a time-aware state space block
that they share (TiSSD, eq. 3-11); their time signals are filtered together (eq. 12-15); a cross block lets the image
stream ask the text stream (TiCoSSD, eq. 16-18); the result at the last item scores the candidates (eq. 19-21).
``docs/method.md`` holds all equations and what the presets ``paper`` and ``released`` change.

Shapes: B rows, L positions, L' of time signals (L, or max_length where padding counts), d width, H heads, N items,
M items at hand.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmm4rec.models.base import Catalogue, Rows, Settings, System, Tables
from mmm4rec.models.items import require_features
from mmm4rec.models.times import UseTime, is_timed, time_path
from mmm4rec.nn.blocks import FeedForward, SSDSizes, TiCoSSD, TiSSD
from mmm4rec.nn.dropout import Dropout
from mmm4rec.nn.fourier import FourierFilter
from mmm4rec.nn.initialise import normal_, small_biases_
from mmm4rec.nn.losses import Duplicates, full_cross_entropy, in_batch_cross_entropy
from mmm4rec.nn.ssd import Method
from mmm4rec.nn.time_signal import TimeGaps, TimeMask, start_scales_
from mmm4rec.nn.unit import FLOOR, unit

MODALITIES = ("text", "image")


class MMM4RecSettings(Settings):
    """Hyper-parameters and switches; ``config/systems/mmm4rec.yaml`` says where each value comes from."""

    max_length: int = Field(20, ge=1)
    hidden_size: int = Field(256, ge=1)
    inner_size: int = Field(256, ge=1)
    layers: int = Field(1, ge=1)
    state_size: int = Field(64, ge=1)
    expand: int = Field(2, ge=1)
    head_size: int = Field(64, ge=1)
    conv_width: int = Field(4, ge=1)
    dropout: float = Field(0.4, ge=0, lt=1)
    norm_eps: float = Field(1e-12, gt=0)
    temperature: float = Field(0.8, gt=0)
    with_id: bool = True
    pretrain_with_id: bool = False
    use_time: UseTime = "on"
    share_tissd: bool = True
    ffn_on: Literal["both", "text"] = "both"
    skip: Literal["x", "dt_x"] = "x"
    mask_padded_gaps: bool = True
    time_scale_bias: float = 2.0
    target_time_in_row: bool = False
    duplicates: Duplicates = "masked"
    pad_candidate: bool = False
    ssd_method: Method = "auto"

    @model_validator(mode="after")
    def _whole_heads(self) -> "MMM4RecSettings":
        if self.expand * self.hidden_size % self.head_size:
            raise ValueError(
                f"head_size {self.head_size} must divide expand * hidden_size = {self.expand * self.hidden_size}"
            )
        return self


class Layer(nn.Module):
    """Alignment of the two streams, filter of their time signals, fusion (eq. 10-18)."""

    def __init__(self, settings: MMM4RecSettings, sizes: SSDSizes) -> None:
        super().__init__()
        width, eps, dropout = settings.hidden_size, settings.norm_eps, settings.dropout
        blocks = ("shared",) if settings.share_tissd else MODALITIES
        self.tissd = nn.ModuleDict({block: TiSSD(sizes) for block in blocks})
        self.norms = nn.ModuleDict({m: nn.LayerNorm(width, eps) for m in MODALITIES})
        with_ffn = MODALITIES if settings.ffn_on == "both" else ("text",)
        self.ffns = nn.ModuleDict({m: FeedForward(width, settings.inner_size, dropout, eps) for m in with_ffn})
        if sizes.timed:
            self.filter = FourierFilter(settings.max_length)
        self.ticossd = TiCoSSD(sizes)
        self.norm = nn.LayerNorm(width, eps)
        self.ffn = FeedForward(width, settings.inner_size, dropout, eps)
        self.drop = Dropout(dropout)

    def align(self, streams: Tensor, signals: Tensor | None, mask: TimeMask) -> tuple[Tensor, Tensor, Tensor | None]:
        """TiSSD, residual, LN and FFN (eq. 10-11).

        Args:
            streams: [2B, L, d], the text stream above the image stream: one batch for a shared block.
            signals: [2B, H, L'], their time signals; None without time.
            mask: of the B rows.

        Returns:
            text and image stream [B, L, d]; T_next [2B, H, L'] or None.
        """
        n_blocks = len(self.tissd)
        xs = streams.chunk(n_blocks)
        ts = [None] * n_blocks if signals is None else signals.chunk(n_blocks)
        mask = mask.repeat(2 // n_blocks)
        parts = [block(x, t, mask) for block, x, t in zip(self.tissd.values(), xs, ts, strict=True)]
        mixed = self.drop(torch.cat([out for out, _ in parts])) + streams
        text, image = (self.norms[m](x) for m, x in zip(MODALITIES, mixed.chunk(2), strict=True))
        if "image" in self.ffns:
            image = self.ffns["image"](image)
        return self.ffns["text"](text), image, None if signals is None else torch.cat([t for _, t in parts])

    def fuse(
        self, text: Tensor, image: Tensor, signals: Tensor | None, mask: TimeMask, last: Tensor | None = None
    ) -> Tensor:
        """Fourier filter, TiCoSSD, residual, LN and FFN (eq. 12-18).

        Args:
            text: [B, L, d].
            image: [B, L, d].
            signals: T_next [2B, H, L'] of both, or None.
            mask: of the B rows.
            last: [B] int64, the one position wanted; None for all.

        Returns:
            O [B, L, d]; with ``last`` [B, d].
        """
        common = None if signals is None else self.filter(*signals.chunk(2))
        if common is not None and mask.real is not None:
            common = common * mask.real  # the filter spreads a signal over the padding; the same rule as before it
        out = self.drop(self.ticossd(image, text, common, mask, last))
        residual = image + text if last is None else at(image, last) + at(text, last)
        return self.ffn(self.norm(out + residual))


class MMM4Rec(System):
    """The method of the paper; every switch of its presets is a setting of its own."""

    Settings = MMM4RecSettings
    settings: MMM4RecSettings

    def __init__(self, settings: MMM4RecSettings, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, pretraining=pretraining)
        require_features("mmm4rec", catalogue)
        self.target_time_in_row = settings.target_time_in_row
        self.timed = is_timed("mmm4rec", settings.use_time, catalogue)
        width, eps, dropout = settings.hidden_size, settings.norm_eps, settings.dropout

        self.features = nn.Module()
        self.adapters = nn.ModuleDict()
        for m in MODALITIES:
            features = normalised(catalogue, m)
            self.features.register_buffer(m, features, persistent=False)
            self.adapters[m] = nn.Linear(features.shape[1], width)
        has_image = None  # [N + 1, 1], where missing images are left out
        if catalogue.missing_image == "mask":
            assert catalogue.has_image is not None
            has_image = catalogue.has_image.float()[:, None]
        self.register_buffer("has_image", has_image, persistent=False)
        self.has_image: Tensor | None
        self.modality_bias = nn.ParameterDict()
        if settings.with_id and (settings.pretrain_with_id or not pretraining):
            # R_m; where the padding is a candidate it has a row too
            n_rows = catalogue.n_items + settings.pad_candidate
            self.modality_bias.update({m: nn.Parameter(torch.zeros(n_rows, width)) for m in MODALITIES})

        sizes = SSDSizes(
            width=width,
            heads=settings.expand * width // settings.head_size,
            head_size=settings.head_size,
            state_size=settings.state_size,
            conv_width=settings.conv_width,
            max_length=settings.max_length,
            timed=self.timed,
            dropout=dropout,
            eps=eps,
            skip=settings.skip,
            method=settings.ssd_method,
        )
        self.norms = nn.ModuleDict({m: nn.LayerNorm(width, eps) for m in MODALITIES})
        self.drop = Dropout(dropout)
        if self.timed:
            self.time_gaps = TimeGaps(settings.max_length, sizes.heads, dropout, eps)
        self.layers = nn.ModuleList(Layer(settings, sizes) for _ in range(settings.layers))
        self.apply(normal_)
        # a modality that an item lacks is the adapter's bias alone (`zero`) or nothing at all (`mask`)
        small_biases_(*self.adapters.values(), *self.norms.values())
        start_scales_(self, settings.time_scale_bias)  # Tanhshrink(2) = 1.04

    # -- items

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """e_text, e_image [M + 1, d] (eq. 1-2) and the candidate vectors [M + 1, d] (eq. 19), row 0 for padding."""
        rows = None if ids is None else F.pad(ids, (1, 0))
        items = [self._items(m, rows) for m in MODALITIES]
        candidates = sum(unit(e) for e in items) / self.settings.temperature
        return (*items, cast(Tensor, candidates))

    def _items(self, modality: str, rows: Tensor | None) -> Tensor:
        def table(values: Tensor) -> Tensor:
            return values if rows is None else values[rows]

        e = self.adapters[modality](table(getattr(self.features, modality)))
        if modality in self.modality_bias:
            bias = self.modality_bias[modality]
            e = e + table(bias if self.settings.pad_candidate else F.pad(bias, (0, 0, 1, 0)))
        if modality == "image" and self.has_image is not None:
            e = e * table(self.has_image)
        return e

    def candidates(self, tables: Tables) -> Tensor:
        """c_i = sum_m e_m(i)/||e_m(i)|| / tau [M, d]."""
        return tables[2][1:]

    def extra_candidates(self, tables: Tables) -> Tensor | None:
        """Vectors [1, d] of candidates that are no items: the padding, if it competes (``pad_candidate``)."""
        return tables[2][:1] if self.settings.pad_candidate else None

    # -- rows

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """User vectors h [B, d]: the last layer's result at the last item."""
        return self.outputs(tables, rows, rows.lengths - 1)

    def outputs(self, tables: Tables, rows: Rows, last: Tensor | None = None) -> Tensor:
        """O of the last layer at every position, [B, L, d]; with ``last`` [B] int64 there alone, [B, d].

        Every row is its own: its items, its times and its length decide the result, not its padding nor its batch.
        """
        embedded = (self.drop(F.embedding(rows.items, e)) for e in tables[:2])
        streams = torch.cat([self.norms[m](x) for m, x in zip(MODALITIES, embedded, strict=True)])
        mask, signals = TimeMask(None, None), None
        if self.timed:
            times, mask = time_path(rows, mask_padding=self.settings.mask_padded_gaps)
            signals = self.time_gaps(times.repeat(2, 1), mask.repeat(2))
        for layer in cast("list[Layer]", list(self.layers)):
            text, image, signals = layer.align(streams, signals, mask)
            final = layer is self.layers[-1]
            out = layer.fuse(text, image, signals, mask, last if final else None)
            if not final:
                streams = torch.cat((text, out))
        return out

    # -- training

    def catalogue_loss(self, tables: Tables, users: Tensor, targets: Tensor) -> Tensor:
        """Sum over the users of the cross-entropy over the catalogue (eq. 21), with the padding if it competes."""
        if not self.settings.pad_candidate:
            return super().catalogue_loss(tables, users, targets)
        return full_cross_entropy(users, tables[2], targets, reduction="sum")

    def in_batch_loss(self, users: Tensor, candidates: Tensor, targets: Tensor, places: Tensor) -> Tensor:
        """Sum over the users of the cross-entropy over the batch's targets (eq. 20)."""
        return in_batch_cross_entropy(users, candidates, targets, self.settings.duplicates, places, "sum")

    def carried_over(self, name: str) -> bool:
        """Everything but the modality bias, which belongs to one catalogue's ids."""
        return not name.startswith("modality_bias.")


def normalised(catalogue: Catalogue, modality: str) -> Tensor:
    """Features [N + 1, F] of length 1; rows without a feature stay zero, all of them if the domain has none.

    A modality that the domain lacks has the width of the other one.
    """
    own, other = catalogue.text, catalogue.image
    if modality == "image":
        own, other = other, own
    if own is None:
        assert other is not None
        return torch.zeros(other.shape, device=other.device)
    return F.normalize(own.float(), eps=FLOOR)


def at(x: Tensor, position: Tensor) -> Tensor:
    """One position a row: [B, d] of x [B, L, d]."""
    return x[torch.arange(len(x), device=x.device), position]


MODEL = MMM4Rec
