"""M3Rec: one Mamba for ids, text and image, experts for each of them (Guo et al., ICASSP 2025).

Its published code calls the Mamba of the text and image streams without gradients, and draws noise over the frozen
features; here both are as the method says, and options (``defects``).
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmm4rec.models.base import Catalogue, Rows, Settings, System, Tables
from mmm4rec.models.items import IdVectors, at_hand, require_features
from mmm4rec.nn.blocks import FeedForward
from mmm4rec.nn.dropout import Dropout
from mmm4rec.nn.initialise import normal_, small_biases_
from mmm4rec.nn.mamba import Mamba, MambaLayer
from mmm4rec.nn.transformer import EPS

Defect = Literal["noise_features", "no_grad_mamba", "dt_bias_reset"]


class M3RecSettings(Settings):
    """Sizes and dropout, and defects of the published code to reproduce."""

    hidden_size: int = Field(ge=1)
    inner_size: int = Field(ge=1)
    layers: int = Field(ge=1)
    state_size: int = Field(ge=1)
    conv_width: int = Field(ge=1)
    expand: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    defects: list[Defect] = Field([])


class Layer(nn.Module):
    """LN(drop(Mamba(X)) + X), the same for all streams, then each stream's own feed-forward network, its expert.

    An only layer has no residual around its Mamba.
    """

    def __init__(self, settings: M3RecSettings, streams: tuple[str, ...]) -> None:
        super().__init__()
        s = settings
        reset = "dt_bias_reset" in s.defects
        self.detach = "no_grad_mamba" in s.defects
        mamba = Mamba(s.hidden_size, s.state_size, s.conv_width, s.expand, reset_steps=reset)
        self.mixer = MambaLayer(mamba, s.hidden_size, s.dropout, EPS, residual=s.layers > 1)
        self.experts = nn.ModuleDict(
            {m: FeedForward(s.hidden_size, s.inner_size, s.dropout, EPS, F.gelu) for m in streams}
        )

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """[S * B, L, D], the S streams one above the other, to the same; with ``lengths`` [S * B] to [S * B, D]."""
        parts = self.mixer(x, lengths).chunk(len(self.experts))
        out = []
        for (stream, expert), part in zip(self.experts.items(), parts, strict=True):
            out.append(expert(part.detach() if self.detach and stream != "ids" else part))
        return torch.cat(out)


class M3Rec(System):
    """A stream of ids and one of each modality, encoded side by side; users and candidates are their concatenation."""

    Settings = M3RecSettings
    settings: M3RecSettings

    def __init__(self, settings: Any, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, pretraining=pretraining)
        require_features("m3rec", catalogue)
        s = self.settings
        features = {"image": catalogue.image, "text": catalogue.text}
        self.modalities = tuple(m for m, values in features.items() if values is not None)
        self.streams = (*self.modalities, "ids")
        noise = "noise_features" in s.defects
        self.features = nn.Module()
        self.projectors = nn.ModuleDict()
        for m in self.modalities:
            table = cast(Tensor, features[m]).float()
            table = torch.randn(table.shape).to(table) * 0.02 if noise else table
            self.features.register_buffer(m, table, persistent=noise)  # noise is drawn but once, so it is kept
            self.projectors[m] = nn.Sequential(
                nn.Linear(table.shape[1], s.hidden_size), nn.LeakyReLU(), nn.Linear(s.hidden_size, s.hidden_size)
            )
        masked = "image" in self.modalities and catalogue.missing_image == "mask"
        self.register_buffer(
            "has_image", cast(Tensor, catalogue.has_image).float()[:, None] if masked else None, persistent=False
        )
        self.has_image: Tensor | None
        self.item = IdVectors(catalogue, s.hidden_size)
        self.weights = nn.ParameterDict({m: torch.ones(()) for m in self.modalities})
        self.norms = nn.ModuleDict({m: nn.LayerNorm(s.hidden_size, EPS) for m in self.streams})
        self.drop = Dropout(s.dropout)
        self.layers = nn.ModuleList(Layer(s, self.streams) for _ in range(s.layers))
        self.apply(normal_)
        for m in self.modalities:
            first, _, second = cast(nn.Sequential, self.projectors[m])
            small_biases_(first, second, self.norms[m])

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """The projections W2 LeakyReLU(W1 f + b1) + b2 of each modality's features and the id vectors [M + 1, D]."""
        tables = {m: self.projectors[m](at_hand(getattr(self.features, m), ids)) for m in self.modalities}
        if self.has_image is not None:
            tables["image"] = tables["image"] * at_hand(self.has_image, ids)
        return (*tables.values(), self.item.table(ids))

    def candidates(self, tables: Tables) -> Tensor:
        """[a * image ; b * text ; id] [M, S * D], a and b learned."""
        return self._joined([table[1:] for table in tables])

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """[a * image ; b * text ; id] of the streams' hidden states at the last event, [B, S * D]."""
        embedded = [self.drop(F.embedding(rows.items, table)) for table in tables]
        x = torch.cat([self.norms[m](e) for m, e in zip(self.streams, embedded, strict=True)])
        lengths = rows.lengths.repeat(len(self.streams))
        for layer in self.layers:
            x = layer(x, lengths if layer is self.layers[-1] else None)
        return self._joined(x.chunk(len(self.streams)))

    def _joined(self, parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        weighted = [part * self.weights[m] for m, part in zip(self.modalities, parts[:-1], strict=True)]
        return torch.cat([*weighted, parts[-1]], dim=-1)


MODEL = M3Rec
