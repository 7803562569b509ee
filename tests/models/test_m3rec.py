from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_systems import N_ITEMS, catalogue, rows, small, small_settings

from mmm4rec.config import read_system
from mmm4rec.models.base import Catalogue, build

ITEMS = [[3, 4, 5, 6, 7, 8], [1, 2, 3, 9, 0, 0], [11, 0, 0, 0, 0, 0]]
BATCH = rows(ITEMS, [2, 3, 4])


def norm(module, x):
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, 1e-12)


def project(system, modality, features):
    first, _, second = system.projectors[modality]
    hidden = features @ first.weight.T + first.bias
    return torch.where(hidden > 0, hidden, 0.01 * hidden) @ second.weight.T + second.bias


def vectors(system, known):
    """Item vectors [N + 1, d] of each stream."""
    each = {m: project(system, m, getattr(known, m)) for m in ("image", "text") if getattr(known, m) is not None}
    return each | {"ids": system.item.weight}


def plain(system, known, items):
    """The user vector of one row: each stream on its own, all positions of all layers."""
    out = []
    for stream, table in vectors(system, known).items():
        x = norm(system.norms[stream], table[torch.tensor(items)])[None]
        for layer in system.layers:
            mixed = layer.mixer.mamba(x)
            x = norm(layer.mixer.norm, mixed + x if len(system.layers) > 1 else mixed)
            expert = layer.experts[stream]
            x = norm(expert.norm, x + expert.out(F.gelu(expert.inner(x))))
        out.append(x[0, -1] * system.weights[stream] if stream in system.weights else x[0, -1])
    return torch.cat(out)


@pytest.mark.parametrize("changes", [{}, {"layers": 1}])
@pytest.mark.parametrize("lacks", [(), ("text",), ("image",)])
def test_users_and_scores_follow_the_equations(changes, lacks):
    known, given = (replace(catalogue(), **dict.fromkeys(lacks)) for _ in range(2))
    system = small("m3rec", given, perturbed=0.2, **changes).eval()
    tables = system.item_tables()
    users = system.users(tables, BATCH)
    for user, items in zip(users, ITEMS, strict=True):
        torch.testing.assert_close(user, plain(system, known, [i for i in items if i]), rtol=1e-4, atol=1e-4)
    wanted = 0
    for part, (stream, table) in zip(users.split(16, -1), vectors(system, known).items(), strict=True):
        weight = system.weights.get(stream, 1)
        wanted = wanted + part @ (weight * table[1:]).T
    torch.testing.assert_close(system.scores(tables, users), wanted)


def test_a_modality_that_the_domain_lacks_has_no_stream():
    both = small("m3rec")
    assert both.streams == ("image", "text", "ids")
    lone = small("m3rec", replace(catalogue(), image=None))
    assert lone.streams == ("text", "ids")
    assert not [name for name in lone.state_dict() if "image" in name]
    assert lone.users(lone.item_tables(), BATCH).shape == (3, 32)


def test_an_image_that_an_item_lacks():
    """`zero` (and `white`) go through the projector; `mask` leaves nothing, in the row and in the candidate."""
    system = small("m3rec", perturbed=0.2).eval()
    image = system.item_tables()[0]
    torch.testing.assert_close(image[N_ITEMS], project(system, "image", torch.zeros(8)))
    masked = small("m3rec", replace(catalogue(), missing_image="mask"), perturbed=0.2).eval()
    tables = masked.item_tables()
    assert (tables[0][[0, N_ITEMS - 1, N_ITEMS]] == 0).all()
    torch.testing.assert_close(tables[0][1 : N_ITEMS - 1], image[1 : N_ITEMS - 1])
    torch.testing.assert_close(tables[1], system.item_tables()[1])
    for some, all_ in zip(masked.item_tables(torch.tensor([3, N_ITEMS])), tables, strict=True):
        torch.testing.assert_close(some, all_[[0, 3, N_ITEMS]])


@pytest.mark.parametrize("missing_image", ["zero", "mask"])
def test_gradients_of_missing_features_stay_in_bounds(missing_image):
    """A LayerNorm of a zero vector multiplies gradients by 1e6."""
    known = replace(catalogue(), missing_image=missing_image)
    system = small("m3rec", known)
    system.finetune_loss(system.item_tables(), rows([[11, 12, 11, 12]])).backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e3 for p in system.parameters())


def gradients(defects):
    """Largest gradient of each parameter, through the user vectors alone: candidates are held fixed."""
    system = small("m3rec", perturbed=0.2, defects=defects)
    tables = system.item_tables()
    candidates = system.candidates(tables).detach()
    F.cross_entropy(system.users(tables, BATCH) @ candidates.T, BATCH.targets - 1).backward()
    return {n: 0.0 if p.grad is None else float(p.grad.abs().max()) for n, p in system.named_parameters()}


def test_all_streams_train_the_shared_mamba_and_what_is_before_it():
    assert min(gradients([]).values()) > 0


def test_published_code_cuts_the_gradient_of_two_streams():
    cut = gradients(["no_grad_mamba"])
    dead = {name for name, value in cut.items() if value == 0}
    before = ("projectors.", "norms.image", "norms.text", "layers.0.experts.image", "layers.0.experts.text")
    assert dead == {name for name in cut if name.startswith(before)}
    same, other = (small("m3rec", perturbed=0.2, defects=d).eval() for d in ([], ["no_grad_mamba"]))
    results = [s.users(s.item_tables(), BATCH) for s in (same, other)]
    torch.testing.assert_close(*results)  # what it computes is the same


def test_published_code_draws_noise_over_the_features():
    known = catalogue()
    assert torch.equal(small("m3rec", catalogue()).features.text, known.text)
    assert "features.text" not in small("m3rec", known).state_dict()
    noisy = small("m3rec", known, defects=["noise_features"])
    assert noisy.features.text.shape == known.text.shape
    assert noisy.features.text.std() < 0.05
    again = build("m3rec", small_settings("m3rec", defects=["noise_features"]), known)
    assert not torch.equal(again.features.image, noisy.features.image)
    again.load_state_dict(noisy.state_dict())  # noise is part of what a run leaves
    assert torch.equal(again.features.image, noisy.features.image)


def test_its_settings_file_builds():
    known = Catalogue(n_items=3, text=torch.zeros(4, 768), image=torch.zeros(4, 512))
    system = build("m3rec", read_system("m3rec").settings, known)
    assert system.candidates(system.item_tables()).shape == (3, 192)
