import math

import pytest
import torch

from mmm4rec.nn.transformer import TransformerEncoder, last_position


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return TransformerEncoder(size=16, inner_size=32, layers=2, heads=2, dropout=0.3).eval()


def reference(encoder, x, allowed=None):
    """The equations, written out; ``allowed`` [B, L, L] says which position sees which, or earlier ones only."""
    if allowed is None:
        allowed = torch.ones(x.shape[1], x.shape[1]).tril().bool()
    for attention, feed_forward in zip(encoder.attention, encoder.feed_forward, strict=True):
        size, heads = x.shape[-1], attention.heads
        q, (k, v) = attention.query(x), attention.key_value(x).chunk(2, -1)
        y = torch.zeros_like(x)
        for h in range(heads):
            part = slice(h * size // heads, (h + 1) * size // heads)
            score = q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(size / heads)
            score = score.masked_fill(~allowed, -torch.inf)
            y[..., part] = score.softmax(-1) @ v[..., part]
        x = attention.norm(x + attention.out(y))
        x = feed_forward.norm(x + feed_forward.outer(torch.nn.functional.gelu(feed_forward.inner(x))))
    return x


def test_equals_the_equations(encoder):
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(encoder(x), reference(encoder, x))


def test_last_equals_the_full_pass_and_ignores_padding(encoder):
    x, lengths = torch.randn(4, 9, 16), torch.tensor([9, 1, 4, 6])
    expected = last_position(encoder(x), lengths)
    torch.testing.assert_close(encoder.last(x, lengths), expected)
    noise = torch.where((torch.arange(9) < lengths[:, None])[..., None], x, torch.randn(4, 9, 16) * 100)
    torch.testing.assert_close(encoder.last(noise, lengths), expected)


def test_in_both_directions_among_real_positions(encoder):
    x, lengths = torch.randn(4, 9, 16), torch.tensor([9, 1, 4, 6])
    real = torch.arange(9) < lengths[:, None]
    expected = reference(encoder, x, allowed=real[:, None].expand(-1, 9, -1))
    torch.testing.assert_close(encoder(x, real), expected)
    torch.testing.assert_close(encoder.last(x, lengths, bidirectional=True), last_position(expected, lengths))
    noise = torch.where(real[..., None], x, torch.randn(4, 9, 16) * 100)
    torch.testing.assert_close(encoder(noise, real)[real], expected[real])


def test_every_parameter_trains(encoder):
    encoder.last(torch.randn(4, 5, 16), torch.tensor([5, 2, 3, 4])).pow(2).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
