import pytest
import torch
from torch import nn

from mmm4rec.nn.bidirectional import Encoder


def torch_encoder(encoder: Encoder, size: int, inner_size: int, heads: int, dropout: float = 0.0) -> nn.Module:
    """PyTorch's own encoder with the same weights."""
    layer = nn.TransformerEncoderLayer(size, heads, inner_size, dropout, "gelu", batch_first=True)
    theirs = nn.TransformerEncoder(layer, len(encoder.layers), nn.LayerNorm(size), enable_nested_tensor=False)
    names = {
        "query_key_value.weight": "self_attn.in_proj_weight",
        "query_key_value.bias": "self_attn.in_proj_bias",
        "out.": "self_attn.out_proj.",
        "norm.": "norm1.",
        "inner.": "linear1.",
        "outer.": "linear2.",
        "outer_norm.": "norm2.",
    }
    weights = {f"norm.{k}": v for k, v in encoder.norm.state_dict().items()}
    for i, ours in enumerate(encoder.layers):
        for name, value in ours.state_dict().items():
            mine = next(n for n in sorted(names, key=len, reverse=True) if name.startswith(n))
            weights[f"layers.{i}.{name.replace(mine, names[mine])}"] = value
    theirs.load_state_dict(weights)
    return theirs.train(encoder.training)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = Encoder(size=16, inner_size=32, layers=2, heads=4, dropout=0.0)
    for p in encoder.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return encoder


def inputs(width=7):
    lengths = torch.tensor([width, 1, 4, 6]).clamp(max=width)
    return torch.randn(4, width, 16), torch.arange(width) < lengths[:, None]


@pytest.mark.parametrize("width", [1, 2, 7])
@pytest.mark.parametrize("training", [True, False])
def test_equals_torch_where_wanted(encoder, width, training):
    encoder.train(training)
    x, real = inputs(width)
    wanted = real.flatten().nonzero()[:, 0][::2]
    expected = torch_encoder(encoder, 16, 32, 4)(x, src_key_padding_mask=~real).flatten(0, 1)[wanted]
    torch.testing.assert_close(encoder(x, real, wanted), expected)


def test_gradients_equal_torch(encoder):
    x, real = inputs()
    wanted = real.flatten().nonzero()[:, 0][::2]
    theirs = torch_encoder(encoder, 16, 32, 4)
    encoder(x, real, wanted).pow(3).sum().backward()
    theirs(x, src_key_padding_mask=~real).flatten(0, 1)[wanted].pow(3).sum().backward()
    for ours, name in [
        ("layers.0.query_key_value.weight", "layers.0.self_attn.in_proj_weight"),
        ("layers.1.query_key_value.bias", "layers.1.self_attn.in_proj_bias"),
        ("layers.1.outer.weight", "layers.1.linear2.weight"),
        ("norm.weight", "norm.weight"),
    ]:
        a, b = dict(encoder.named_parameters())[ours].grad, dict(theirs.named_parameters())[name].grad
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_starts_as_torch_does():
    torch.manual_seed(0)
    ours = Encoder(size=64, inner_size=128, layers=1, heads=4, dropout=0.0)
    theirs = nn.TransformerEncoderLayer(64, 4, 128).state_dict()
    mine = ours.layers[0].state_dict()
    for a, b in [
        ("query_key_value.weight", "self_attn.in_proj_weight"),
        ("query_key_value.bias", "self_attn.in_proj_bias"),
        ("out.weight", "self_attn.out_proj.weight"),
        ("out.bias", "self_attn.out_proj.bias"),
        ("inner.weight", "linear1.weight"),
        ("outer.bias", "linear2.bias"),
    ]:
        assert mine[a].std().item() == pytest.approx(theirs[b].std().item(), rel=0.25), a


def test_a_single_token_is_dropped_as_often_as_a_wide_row():
    """The weight of a lone key is dropped a head, and scaled up where it stays."""
    torch.manual_seed(0)
    layer = Encoder(size=4, inner_size=4, layers=1, heads=2, dropout=0.5).layers[0]
    with torch.no_grad():
        layer.query_key_value.weight.copy_(torch.cat([torch.zeros(8, 4), torch.eye(4)]))
    heads = layer._attend(torch.ones(20_000, 1, 4), torch.ones(20_000, 1, 1, 1, dtype=torch.bool)).view(-1, 2, 2)
    assert torch.equal(heads[..., 0], heads[..., 1])  # a head as a whole
    assert set(heads.unique().tolist()) == {0.0, 2.0}
    assert heads.mean().item() == pytest.approx(1, abs=0.02)
