"""TiM4Rec: time-aware state space duality over items (Fan et al., arXiv 2409.16182), with full cross-entropy.

Its blocks are those of MMM4Rec, which builds on it; equation numbers there are MMM4Rec's. TiM4Rec_T, the variant of the
paper's Table III, knows items by their text alone.
"""

from typing import Any, Literal, cast

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmm4rec.models.base import Catalogue, Rows, Settings, System, Tables
from mmm4rec.models.items import ItemVectors, TextVectors, item_vectors
from mmm4rec.models.times import UseTime, is_timed, time_path
from mmm4rec.nn.blocks import FeedForward, SSDSizes, TiSSD
from mmm4rec.nn.dropout import Dropout
from mmm4rec.nn.initialise import normal_, small_biases_
from mmm4rec.nn.time_signal import TimeGaps, TimeMask, start_scales_
from mmm4rec.nn.transformer import last_position


class TiM4RecSettings(Settings):
    """Sizes, dropout, what an item is known by, whether time is read, and defects to reproduce."""

    items: ItemVectors = "ids"
    hidden_size: int = Field(ge=1)
    inner_size: int = Field(ge=1)
    layers: int = Field(ge=1)
    state_size: int = Field(ge=1)
    head_size: int = Field(ge=1)
    groups: int = Field(ge=1)
    conv_width: int = Field(ge=1)
    expand: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    time_dropout: float = Field(ge=0, lt=1)
    gate_per_position: bool = True
    time_scale_bias: float = 1.0
    norm_eps: float = Field(gt=0)
    use_time: UseTime = "on"
    defects: list[Literal["padded_gaps", "target_time"]] = Field([])

    @model_validator(mode="after")
    def _whole_heads(self) -> "TiM4RecSettings":
        inner = self.expand * self.hidden_size
        if inner % self.head_size:
            raise ValueError(f"head_size {self.head_size} must divide expand * hidden_size = {inner}")
        if self.groups not in (1, inner // self.head_size):
            raise ValueError(f"groups must be 1 or the number of heads, {inner // self.head_size}")
        return self

    @model_validator(mode="after")
    def _leak_is_seen(self) -> "TiM4RecSettings":
        if "target_time" in self.defects and "padded_gaps" not in self.defects:
            raise ValueError("defect target_time does nothing without padded_gaps, which shows the padded position")
        return self


class Layer(nn.Module):
    """X1 = LN(drop(TiSSD(X)) + X), X2 = LN(X1 + drop(W2 drop(Hardswish(W1 X1)))); an only layer has X1 without X."""

    def __init__(self, settings: TiM4RecSettings, sizes: SSDSizes, *, final: bool) -> None:
        super().__init__()
        s = settings
        self.tissd = TiSSD(sizes, next_signal=not final)
        self.drop = Dropout(s.dropout)
        self.norm = nn.LayerNorm(s.hidden_size, s.norm_eps)
        self.ffn = FeedForward(s.hidden_size, s.inner_size, s.dropout, s.norm_eps)
        self.residual = s.layers > 1

    def forward(
        self, x: Tensor, signal: Tensor | None, mask: TimeMask, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """[B, L, D] to the same, with ``lengths`` [B] to the last positions [B, D]; and the next time signal."""
        out, signal = self.tissd(x, signal, mask, None if lengths is None else lengths - 1)
        out = self.drop(out)
        if self.residual:
            out = out + (x if lengths is None else last_position(x, lengths))
        return self.ffn(self.norm(out)), signal


class TiM4Rec(System):
    """Item vectors without positions, time-aware state space layers, scores by the same item vectors."""

    Settings = TiM4RecSettings
    settings: TiM4RecSettings

    def __init__(self, settings: Any, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, pretraining=pretraining)
        s = self.settings
        self.timed = is_timed("tim4rec", s.use_time, catalogue)
        self.target_time_in_row = "target_time" in s.defects
        sizes = SSDSizes(
            width=s.hidden_size,
            heads=s.expand * s.hidden_size // s.head_size,
            head_size=s.head_size,
            state_size=s.state_size,
            conv_width=s.conv_width,
            max_length=s.max_length,
            timed=self.timed,
            dropout=s.time_dropout,
            eps=s.norm_eps,
            groups=s.groups,
            shrink=False,
            gate_per_position=s.gate_per_position,
        )
        self.item = item_vectors(s.items, catalogue, s.hidden_size)
        self.drop = Dropout(s.dropout)
        self.norm = nn.LayerNorm(s.hidden_size, s.norm_eps)
        if self.timed:
            self.time_gaps = TimeGaps(s.max_length, sizes.heads, s.dropout, s.norm_eps)
        self.layers = nn.ModuleList(Layer(s, sizes, final=k == s.layers - 1) for k in range(s.layers))
        self.apply(normal_)
        if isinstance(self.item, TextVectors):
            small_biases_(self.item, self.norm)
        start_scales_(self, s.time_scale_bias)

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """The item vectors [M + 1, D]."""
        return (self.item.table(ids),)

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """Hidden state of the last event [B, D]."""
        x = self.norm(self.drop(F.embedding(rows.items, tables[0])))
        mask, signal = TimeMask(None, None), None
        if self.timed:
            times, mask = time_path(rows, mask_padding="padded_gaps" not in self.settings.defects)
            signal = self.time_gaps(times, mask)
        for layer in self.layers:
            x, signal = layer(x, signal, mask, rows.lengths if layer is self.layers[-1] else None)
        return cast(Tensor, x)


MODEL = TiM4Rec
