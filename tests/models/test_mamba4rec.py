import math

import pytest
import torch
import torch.nn.functional as F
from small_systems import catalogue, rows, small

from mmm4rec.config import read_system
from mmm4rec.errors import UserError
from mmm4rec.models.base import Catalogue, build
from mmm4rec.nn.mamba import selective_scan_reference

BATCH = rows([[3, 4, 5, 6, 7, 8], [1, 2, 3, 9, 0, 0], [11, 0, 0, 0, 0, 0]])


def mamba(block, u):
    """The block as it is defined, a library's convolution and the recurrence one position after the other."""
    weight = block.conv.weight
    x = F.conv1d(F.pad(block.input(u).transpose(1, 2), (3, 0)), weight[:, None], block.conv.bias, groups=len(weight))
    x = F.silu(x.transpose(1, 2))
    step, B = block.write(x).split(block.parts, -1)
    dt = F.softplus(step @ block.step_weight.T + block.step_bias)
    y = selective_scan_reference(x, dt, -block.A_log.exp(), B, block.read(x)) + block.D * x
    return block.out(y * F.silu(block.gate(u)))


def norm(module, x):
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, 1e-12)


def plain(system, items):
    """One row without padding, all positions of all layers."""
    x = norm(system.norm, system.item_tables()[0][torch.tensor(items)])[None]
    for layer in system.layers:
        y = mamba(layer.mixer.mamba, x)
        x = norm(layer.mixer.norm, y + x if len(system.layers) > 1 else y)  # an only layer has no residual here
        x = norm(layer.ffn.norm, x + layer.ffn.out(F.gelu(layer.ffn.inner(x))))
    return x[0, -1]


@pytest.mark.parametrize("key", ["mamba4rec", "mamba4rec_t"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_users_follow_the_equations(key, layers):
    system = small(key, perturbed=0.2, layers=layers).eval()
    users = system.users(system.item_tables(), BATCH)
    for user, items in zip(users, ([3, 4, 5, 6, 7, 8], [1, 2, 3, 9], [11]), strict=True):
        torch.testing.assert_close(user, plain(system, items), rtol=1e-4, atol=1e-4)


def test_scores_are_products_with_the_tied_table():
    system = small("mamba4rec").eval()
    tables = system.item_tables()
    users = system.users(tables, BATCH)
    torch.testing.assert_close(system.scores(tables, users), users @ system.item.weight[1:].T)


def test_text_alone_makes_the_items():
    known = catalogue()
    system = small("mamba4rec_t", known)
    wanted = known.text @ system.item.weight.T + system.item.bias
    torch.testing.assert_close(system.item_tables()[0], wanted)
    assert {name: list(p.shape) for name, p in system.item.named_parameters()} == {"weight": [16, 10], "bias": [16]}


def test_steps_start_as_in_mamba_and_the_defect_resets_them():
    for defects, low, high in (([], 1e-3, 1e-1), (["dt_bias_reset"], math.log(2), math.log(2))):
        for key in ("mamba4rec", "m3rec"):
            for layer in small(key, defects=defects).layers:
                steps = F.softplus(layer.mixer.mamba.step_bias.detach())
                assert low * 0.999 < steps.min() <= steps.max() < high * 1.001


def test_its_settings_file_builds():
    system = build("mamba4rec", read_system("mamba4rec").settings, Catalogue(n_items=3))
    block = system.layers[0].mixer.mamba
    assert block.A_log.shape == (128, 32)
    assert block.parts == (4, 32)
    # of a layer: input, gate, conv, write, read, steps, A, D, out; feed-forward; two norms
    layer = 2 * 64 * 128 + 128 * 5 + 128 * 36 + 128 * 32 + 128 * 5 + 128 * 33 + 128 * 64
    layer += 64 * 256 * 2 + 256 + 64 + 2 * 128
    wanted = 2 * layer + 128 + 4 * 64  # and the first norm, and items
    assert sum(p.numel() for p in system.parameters()) == wanted


def test_wrong_settings_are_one_sentence():
    with pytest.raises(UserError, match="dropout"):
        small("mamba4rec", dropout=1.0)
    with pytest.raises(UserError, match="defects"):
        small("mamba4rec", defects=["bias"])
