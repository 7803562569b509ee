import math

import pytest
import torch
import torch.nn.functional as F
from small_systems import rows, small

from mmm4rec.config import read_system
from mmm4rec.errors import UserError
from mmm4rec.models.base import Catalogue, build
from mmm4rec.models.bsarec import FrequencyFilter, padded_left

ITEMS = [[3, 4, 5, 6, 7, 8], [1, 2, 3, 9, 0, 0], [11, 0, 0, 0, 0, 0]]
BATCH = rows(ITEMS)


def low_frequencies(x, highest):
    """The lowest frequencies of x [L, D], from the sums that define a discrete Fourier transform."""
    n = len(x)
    low = torch.zeros_like(x)
    for k in range(highest + 1):
        both = 1 if k == 0 or 2 * k == n else 2  # k and -k
        for i in range(n):
            for j in range(n):
                low[i] += both / n * math.cos(2 * math.pi * k * (i - j) / n) * x[j]
    return low


def norm(module, x):
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, 1e-12)


@pytest.mark.parametrize(
    ("length", "cutoff", "highest"), [(1, 1, 0), (5, 1, 0), (5, 3, 1), (5, 5, 2), (6, 6, 3), (6, 7, 3), (20, 5, 2)]
)
def test_filter_by_its_definition(length, cutoff, highest):
    torch.manual_seed(0)
    block = FrequencyFilter(length, 3, cutoff, dropout=0.0).double()
    block.low_pass = torch.fft.irfft(  # the buffer is float32
        torch.fft.rfft(torch.eye(length, dtype=torch.float64), dim=0)[: highest + 1], n=length, dim=0
    )
    x = torch.randn(2, length, 3, dtype=torch.float64)
    low = torch.stack([low_frequencies(row, highest) for row in x])
    wanted = norm(block.norm, x + low + block.beta**2 * (x - low))
    torch.testing.assert_close(block(x, last=False), wanted)
    torch.testing.assert_close(block(x, last=True), wanted[:, -1:])
    built = FrequencyFilter(length, 3, cutoff, dropout=0.0).low_pass
    torch.testing.assert_close(built.double(), block.low_pass, rtol=1e-5, atol=1e-6)


def test_filter_by_hand():
    # a mean of 2, and the slowest wave of four positions, cos(pi i / 2) and sin(pi i / 2)
    x = torch.tensor([1.0, 5.0, 0.0, 2.0])[None, :, None]
    low = FrequencyFilter(4, 1, cutoff=3, dropout=0.0).low_pass @ x
    torch.testing.assert_close(low.flatten(), torch.tensor([2 + 0.5, 2 + 1.5, 2 - 0.5, 2 - 1.5]))
    everything = FrequencyFilter(4, 1, cutoff=4, dropout=0.0).low_pass
    torch.testing.assert_close(everything, torch.eye(4))


def attention(block, x, real):
    """Multi-head attention of x [L, D], a position after the other, to real ones up to it; to itself without any."""
    heads, width = block.heads, x.shape[-1] // block.heads
    q, (k, v) = block.query(x), block.key_value(x).chunk(2, -1)
    out = torch.zeros_like(x)
    for i in range(len(x)):
        seen = [j for j in range(i + 1) if real[j]] or [i]
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            weights = torch.softmax(k[seen, part] @ q[i, part] / math.sqrt(width), 0)
            out[i, part] = weights @ v[seen, part]
    return norm(block.norm, x + block.out(out))


def plain(system, items):
    """The user vector of one row: padding in front of it, or behind it, all positions of all layers."""
    s = system.settings
    padding = [0] * (s.max_length - len(items))
    row = items + padding if s.defects == ["right_padding"] else padding + items
    real = [item > 0 for item in row]
    x = norm(system.norm, system.item.weight[torch.tensor(row)] + system.position.weight)
    for layer in system.layers:
        low = low_frequencies(x, s.cutoff // 2)
        filtered = norm(layer.filter.norm, x + low + layer.filter.beta**2 * (x - low))
        x = s.alpha * filtered + (1 - s.alpha) * attention(layer.attention, x, real)
        x = norm(layer.ffn.norm, x + layer.ffn.outer(F.gelu(layer.ffn.inner(x))))
    return x[max(i for i, there in enumerate(real) if there)]


RIGHT = {"defects": ["right_padding"]}


@pytest.mark.parametrize(
    "changes",
    [{}, {"layers": 1}, {"cutoff": 5, "alpha": 0.3}, {"max_length": 7}, RIGHT, RIGHT | {"max_length": 7, "layers": 3}],
)
def test_users_follow_the_equations(changes):
    system = small("bsarec", perturbed=0.2, **changes).eval()
    users = system.users(system.item_tables(), BATCH)
    for user, items in zip(users, ITEMS, strict=True):
        torch.testing.assert_close(user, plain(system, [i for i in items if i]), rtol=1e-3, atol=1e-4)


def test_padding_stands_on_the_left():
    items, real = padded_left(BATCH.select(slice(1, 3), 4), 6)
    assert items.tolist() == [[0, 0, 1, 2, 3, 9], [0, 0, 0, 0, 0, 11]]
    assert real.tolist() == [[i > 0 for i in row] for row in items.tolist()]


def test_spectrum_is_one_of_all_positions():
    """The same events among more padding are another signal; it is a setting of the system, not of the batch."""
    short, long = (small("bsarec", max_length=n).eval() for n in (6, 12))
    weights = short.state_dict()
    weights["position.weight"] = torch.cat([torch.randn(6, 16), weights["position.weight"]])
    long.load_state_dict(weights)
    users = [s.users(s.item_tables(), BATCH) for s in (short, long)]
    assert not torch.allclose(*users, rtol=1e-2)


def test_its_settings_file_builds():
    system = build("bsarec", read_system("bsarec").settings, Catalogue(n_items=3))
    assert system.fixed_length
    assert system.layers[0].filter.low_pass.shape == (50, 50)
    assert torch.linalg.matrix_rank(system.layers[0].filter.low_pass) == 3  # the mean, and a cosine and a sine


def test_wrong_settings_are_one_sentence():
    with pytest.raises(UserError, match="not a multiple of heads 3"):
        small("bsarec", heads=3)
    with pytest.raises(UserError, match="cutoff 8 is above the highest frequency of 6 positions"):
        small("bsarec", cutoff=8)
