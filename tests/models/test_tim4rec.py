from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_systems import catalogue, rows, small

from mmm4rec.config import read_system
from mmm4rec.errors import UserError
from mmm4rec.models.base import Catalogue, build

ITEMS = [[3, 4, 5, 6, 7, 8], [1, 2, 3, 9, 0, 0], [11, 0, 0, 0, 0, 0]]
BATCH = rows(ITEMS)
L = 6


def norm(module, x, eps):
    n = x.shape[-1]
    return F.layer_norm(x, (n,), module.weight[:n], module.bias[:n], eps)


def conv(module, x):
    """Causal depthwise convolution with SiLU of x [l, C]."""
    x = F.pad(x.T, (module.weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(x[None], module.weight[:, None], module.bias, groups=len(x))[0].T)


def signal_norm(module, signal, length, eps):
    """LN over the events of a row, 0 over its padding: [H, L] to the same."""
    return F.pad(norm(module, signal[:, :length], eps), (0, L - length))


def tissd(block, x, signal, eps):
    """One row x [l, d], T [H, L] or None: the equations as they read, and T'."""
    sizes, heads = block.sizes if hasattr(block, "sizes") else block.heads.sizes, block.heads
    z, *mixed, delta = block.project(x).split(block.parts, -1)
    v, B, C = conv(block.conv, torch.cat(mixed, -1)).split(block.parts[1:4], -1)
    factor = None
    if signal is not None:
        scale = block.factor.scale_out(F.silu(block.factor.scale_in(signal)))  # no Tanhshrink
        factor = conv(block.factor.conv_2, conv(block.factor.conv_1, (signal * scale).T))  # [L, H]
        delta = delta * factor[: len(x)]
    dt = F.softplus(delta + heads.step.dt_bias)
    groups = B.shape[-1] // sizes.state_size
    out = []
    state = torch.zeros(sizes.heads, sizes.head_size, sizes.state_size)
    for i in range(len(x)):
        now = v[i].view(sizes.heads, sizes.head_size)
        write, read = (m[i].view(groups, 1, -1).expand(sizes.heads, -1, -1) for m in (B, C))
        decay = torch.exp(-heads.A_log.exp() * dt[i])[:, None, None]
        state = decay * state + (dt[i][:, None] * now)[..., None] * write
        out.append(((state * read).sum(-1) + heads.D[:, None] * now).flatten())
    gated = torch.stack(out) * F.silu(z)
    y = gated / (gated.square().mean(-1, keepdim=True) + eps).sqrt() * heads.norm.weight
    return heads.out(y), None if factor is None else factor.T


def plain(system, items, times):
    """The user vector of one row, all positions of all layers."""
    eps, length = system.settings.norm_eps, len(items)
    x = norm(system.norm, system.item_tables()[0][torch.tensor(items)], eps)
    signal = None
    if system.timed:
        gaps = F.pad(torch.tensor(times[1:length]) - torch.tensor(times[: length - 1]), (1, L - length)).float()
        heads = system.layers[0].tissd.heads.sizes.heads
        signal = signal_norm(system.time_gaps.norm, gaps.expand(heads, L), length, eps)
    for layer in system.layers:
        y, factor = tissd(layer.tissd, x, signal, eps)
        x = norm(layer.norm, y + x if len(system.layers) > 1 else y, eps)
        x = norm(layer.ffn.norm, x + layer.ffn.out(F.hardswish(layer.ffn.inner(x))), eps)
        if layer is not system.layers[-1] and signal is not None:
            q = torch.sigmoid(layer.tissd.next_time.gate(signal))
            assert q.shape == (signal if system.settings.gate_per_position else signal[:, :1]).shape
            signal = signal_norm(layer.tissd.next_time.norm, q * signal + (1 - q) * factor, length, eps)
    return x[-1]


@pytest.mark.parametrize("changes", [{}, {"layers": 1}, {"groups": 4}, {"gate_per_position": False}, {"layers": 3}])
@pytest.mark.parametrize("key", ["tim4rec", "tim4rec_t", "tim4rec_notime"])
def test_users_follow_the_equations(key, changes):
    system = small(key, perturbed=0.2, **changes).eval()
    users = system.users(system.item_tables(), BATCH)
    for user, items, times in zip(users, ITEMS, BATCH.times.tolist(), strict=True):
        wanted = plain(system, [i for i in items if i], times)
        torch.testing.assert_close(user, wanted, rtol=1e-3, atol=1e-3)


def test_time_has_an_effect_and_gradients_from_the_start():
    """From a scale of zero gaps hardly reach a step size; Tanhshrink, which MMM4Rec has here, makes it worse."""
    later = replace(BATCH, times=BATCH.times + (torch.arange(L) * 10**6) * (BATCH.times > 0))

    def effect_and_gradient(bias):
        system = small("tim4rec", time_scale_bias=bias).double().eval()  # the effect is below float32's resolution
        tables = system.item_tables()
        system.finetune_loss(tables, BATCH).backward()
        effect = (system.users(tables, later) - system.users(tables, BATCH)).detach().abs().max()
        return torch.stack([effect, system.time_gaps.norm.weight.grad.abs().max()])

    assert (effect_and_gradient(1.0) > 20 * effect_and_gradient(0.0)).all()
    assert read_system("tim4rec").settings["time_scale_bias"] == 1.0


def test_a_row_without_all_times_is_as_without_time():
    system = small("tim4rec", perturbed=0.2).eval()
    timeless = small("tim4rec_notime").eval()
    own = timeless.state_dict().keys()
    timeless.load_state_dict({k: v for k, v in system.state_dict().items() if k in own})
    tables = system.item_tables()
    unknown = replace(BATCH, has_time=torch.tensor([False, True, False]))
    users, wanted = system.users(tables, unknown), timeless.users(tables, replace(BATCH, times=None, has_time=None))
    torch.testing.assert_close(users[[0, 2]], wanted[[0, 2]])
    torch.testing.assert_close(users[1], system.users(tables, BATCH)[1])
    assert not torch.allclose(users[1], wanted[1], rtol=1e-3)


def test_a_domain_without_times_takes_the_form_without_time():
    names = [set(small(key, catalogue(times=False)).state_dict()) for key in ("tim4rec", "tim4rec_notime")]
    assert names[0] == names[1]
    assert not [name for name in names[0] if "time" in name or "factor" in name]
    assert [name for name in small("tim4rec").state_dict() if "time_gaps" in name]


def test_padding_is_no_gap_unless_the_defect_is_asked_for():
    """Padded positions count as the time 0 in the published code: a gap of -1.5e9 seconds hides all real ones."""
    seen = {}
    for defects in ([], ["padded_gaps"]):
        system = small("tim4rec", defects=defects).eval()
        system.time_gaps.register_forward_hook(lambda _m, _i, out, key=bool(defects): seen.update({key: out[1, 0]}))
        system.encode(system.item_tables(), BATCH)
    assert (seen[False][4:] == 0).all()  # the second row has four events, 1, 3 and 5 days apart
    assert seen[False][:4].diff().min() > 0.3
    assert seen[True][4] < -2
    assert seen[True][:4].diff().abs().max() < 0.01


def test_the_targets_time_is_asked_for_by_a_defect_alone():
    assert not small("tim4rec").target_time_in_row
    assert not small("tim4rec", defects=["padded_gaps"]).target_time_in_row
    leaky = small("tim4rec", defects=["padded_gaps", "target_time"], perturbed=0.3).eval()
    assert leaky.target_time_in_row
    later = BATCH.times.clone()
    later[1, 4] = BATCH.times[1, 3] + 86_400  # the second row has four events
    tables = leaky.item_tables()
    users, seen = leaky.users(tables, BATCH), leaky.users(tables, replace(BATCH, times=later))
    assert not torch.allclose(users[1], seen[1], rtol=1e-3)
    with pytest.raises(UserError, match="target_time does nothing without padded_gaps"):
        small("tim4rec", defects=["target_time"])


def test_its_settings_files_build():
    known = Catalogue(n_items=3, text=torch.zeros(4, 5), has_time=True, all_timed=True)
    for key in ("tim4rec", "tim4rec_t", "tim4rec_notime"):
        system = build("tim4rec", read_system(key).settings, known)
        sizes = system.layers[0].tissd.heads.sizes
        assert (sizes.heads, sizes.states, sizes.inner) == (4, 32, 128)
        assert system.timed == (key != "tim4rec_notime")


def test_wrong_settings_are_one_sentence():
    with pytest.raises(UserError, match="head_size 5 must divide"):
        small("tim4rec", head_size=5)
    with pytest.raises(UserError, match="groups must be 1 or the number of heads, 4"):
        small("tim4rec", groups=2)
    with pytest.raises(UserError, match="use_time"):
        small("tim4rec", use_time="sometimes")
    assert small("tim4rec", use_time=False).timed is False  # YAML's reading of an unquoted off
