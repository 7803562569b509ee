"""MMM4Rec's training loss as docs/method.md reads, computed in full: the reference that the fast one is held against.

Every row has max_length positions, padding included; adapters run at every position; the two streams go one after the
other; the mixing matrix of every head stands in memory; each modality scores all items by itself; dropout and
convolutions are PyTorch's own. It takes the weights of an `mmm4rec.models.mmm4rec.MMM4Rec` of one layer, so that the
two can be compared.

Shapes: B rows, L = max_length positions, d width, N items.
"""

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmm4rec.models.base import Rows
from mmm4rec.models.mmm4rec import MODALITIES, Layer, MMM4Rec
from mmm4rec.nn.blocks import SSDHeads, TiCoSSD, TiSSD
from mmm4rec.nn.conv import CausalConv
from mmm4rec.nn.dropout import Dropout
from mmm4rec.nn.time_signal import TimeMask


def plain(model: MMM4Rec) -> MMM4Rec:
    """A copy of a model whose dropout is PyTorch's own."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Dropout):
                setattr(module, name, nn.Dropout(child.p))
    return model


def padded_loss(model: MMM4Rec, rows: Rows) -> Tensor:
    """Mean cross-entropy of a batch of fine-tuning over the catalogue (eq. 21)."""
    h = padded_users(model, rows)
    text, image = (h @ F.normalize(_items(model, m)).T / model.settings.temperature for m in MODALITIES)
    return F.cross_entropy(text + image, rows.targets - 1)


def padded_users(model: MMM4Rec, rows: Rows) -> Tensor:
    """User vectors [B, d]."""
    length = model.max_length
    items = F.pad(rows.items, (0, length - rows.items.shape[1]))
    layer = cast(Layer, model.layers[0])
    block = cast(TiSSD, layer.tissd["shared"])
    streams, signals, mask = {}, {}, TimeMask(None, None)
    if model.timed:
        assert rows.times is not None
        assert rows.has_time is not None
        real = torch.arange(length, device=items.device) < rows.lengths[:, None]
        mask = TimeMask(real[:, None], rows.has_time[:, None, None])
    for m in MODALITIES:
        features = cast(Tensor, getattr(model.features, m))
        e = model.adapters[m](features[items])
        if m in model.modality_bias:
            e = e + F.pad(model.modality_bias[m], (0, 0, 1, 0))[items]
        x = model.norms[m](model.drop(e))
        signal = None if rows.times is None or not model.timed else model.time_gaps(rows.times, mask)
        y, signals[m] = _tissd(block, x, signal, mask)
        streams[m] = layer.ffns[m](layer.norms[m](layer.drop(y) + x))
    text, image = (streams[m] for m in MODALITIES)
    common = None
    if model.timed:
        common = layer.filter(signals["text"], signals["image"]) * mask.real
    fused = layer.drop(_ticossd(layer.ticossd, image, text, common, mask))
    out = layer.ffn(layer.norm(fused + image + text))
    return out[torch.arange(len(out), device=out.device), rows.lengths - 1]


def _items(model: MMM4Rec, modality: str) -> Tensor:
    """e_m [N, d] of the whole catalogue (eq. 1-2)."""
    e = model.adapters[modality](cast(Tensor, getattr(model.features, modality))[1:])
    return e + model.modality_bias[modality] if modality in model.modality_bias else e


def _tissd(block: TiSSD, u: Tensor, signal: Tensor | None, mask: TimeMask) -> tuple[Tensor, Tensor | None]:
    """Eq. 3-9 at every position of u [B, L, d]."""
    z, *mixed, delta = block.project(u).split(block.parts, -1)
    x, B, C = _conv(block.conv, torch.cat(mixed, -1)).split(block.parts[1:4], -1)
    factor = None if signal is None else block.factor(signal)
    dt = block.heads.step(delta, factor, mask)
    out = _heads(block.heads, x, dt, B, C, z)
    return out, None if signal is None else cast(nn.Module, block.next_time)(signal, factor, mask)


def _ticossd(block: TiCoSSD, query: Tensor, value: Tensor, signal: Tensor | None, mask: TimeMask) -> Tensor:
    """Eq. 16-18 at every position of query and value [B, L, d]."""
    *mixed, delta = block.project_value(value).split(block.parts, -1)
    x, B = _conv(block.conv_value, torch.cat(mixed, -1)).split(block.parts[:2], -1)
    C = _conv(block.conv_query, block.project_query(query))
    dt = block.heads.step(delta, None if signal is None else block.factor(signal), mask)
    return _heads(block.heads, x, dt, B, C, block.project_gate(query + value))


def _heads(heads: SSDHeads, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor) -> Tensor:
    """Y = ((C B^T) * M)(dt * x) + D x with M and C B^T in full, [B, H, L, L], then gate, norm and output map."""
    length = x.shape[1]
    x, B, C = (v.unflatten(-1, (heads.sizes.heads, -1)).transpose(1, 2) for v in (x, B, C))
    sums = (dt * -torch.exp(heads.A_log)).cumsum(1).transpose(1, 2)
    decay = sums[..., :, None] - sums[..., None, :]
    lower = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    M = decay.masked_fill(~lower, -torch.inf).exp()
    y = (C @ B.mT * M) @ (dt.transpose(1, 2)[..., None] * x) + heads.D[:, None, None] * x
    return cast(Tensor, heads.out(heads.norm(y.transpose(1, 2).flatten(2), z)))


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`mmm4rec.nn.conv.CausalConv` of x [B, L, C] by torch's own convolution, channels first, a group a channel."""
    padded = F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight))).transpose(1, 2)


def _conv(conv: CausalConv, x: Tensor) -> Tensor:
    return causal_conv(x, conv.weight, conv.bias)
