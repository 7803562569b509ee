import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_systems import N_ITEMS, catalogue, rows, small

from mmm4rec.errors import UserError
from mmm4rec.models import mmsrec
from mmm4rec.models.base import Catalogue
from mmm4rec.models.mmsrec import contrast
from mmm4rec.training.finetune import freeze
from mmm4rec.training.loop import History
from mmm4rec.training.run import load_pretrained, write_run

HISTORIES = [[3, 4, 5, 6, 7, 8], [1, 2, 3, 9], [12, 11, 10], [11], [12]]
BATCH = rows([h + [0] * (6 - len(h)) for h in HISTORIES], [9, 10, 1, 2, 3])
TEXT_ONLY = replace(catalogue(), image=None, has_image=torch.zeros(N_ITEMS + 1, dtype=torch.bool))
IMAGE_ONLY = replace(catalogue(), text=None, has_text=torch.zeros(N_ITEMS + 1, dtype=torch.bool))
DOMAINS = {"both": catalogue(), "text": TEXT_ONLY, "image": IMAGE_ONLY}
WITHOUT_DROPOUT = {"dropout": 0.0, "embedding_dropout": 0.0}


def plain(system, known, items, positions, only=("text", "image")):
    """The network of the paper, one row with one token a modality and slot, those that are not there masked as keys.

    Args:
        items: of the slots; 0 is the mask, None padding.
        positions: of the slots.
        only: the modalities that items may show.

    Returns:
        vectors of length one [slots, D].
    """
    d, heads = system.settings.hidden_size, system.settings.heads
    names = [m for m in ("text", "image") if getattr(known, m) is not None]
    tokens, there = [], []
    for item, position in zip(items, positions, strict=True):
        shows = {m: item is not None and bool(getattr(known, f"has_{m}")[item]) and m in only for m in names}
        masked = item == 0 or (item is not None and not any(getattr(known, f"has_{m}")[item] for m in names))
        for m in names:
            own = system.modalities[m]
            x = system.mask if masked else own.norm(own.adapter(getattr(known, m)[item or 0]))
            tokens.append(system.norm(x + own.kind + system.position.weight[position]))
            there.append(shows[m] or masked)
    x, there = torch.stack(tokens), torch.tensor(there)
    for layer in system.encoder.layers:
        q, k, v = layer.query_key_value(x).chunk(3, -1)
        y = torch.zeros_like(x)
        for h in range(heads):
            part = slice(h * d // heads, (h + 1) * d // heads)
            score = q[:, part] @ k[:, part].T / math.sqrt(d / heads)
            y[:, part] = score.masked_fill(~there, -torch.inf).softmax(-1) @ v[:, part]
        x = layer.norm(x + layer.out(y))
        x = layer.outer_norm(x + layer.outer(F.gelu(layer.inner(x))))
    x = system.encoder.norm(x)
    result = []
    for slot in range(len(items)):
        y = []
        for i, m in enumerate(names):
            token = slot * len(names) + i
            own = system.modalities[m]
            y.append(torch.where(there[token], own.out_norm(own.out(x[token])), torch.tensor(-1e4)))
        result.append(torch.stack(y).amax(0))
    return F.normalize(torch.stack(result), dim=-1)


def plain_row(system, known, shown):
    """A row padded on the left to max_length + 1 slots; the vectors of its own slots, the last one being masked."""
    size = system.max_length + 1
    padded = [None] * (size - 1 - len(shown)) + shown + [0]
    return plain(system, known, padded, range(size))[-len(shown) - 1 :]


def plain_item(system, known, item, only=("text", "image")):
    return plain(system, known, [item], [0], only)[0]


@pytest.mark.parametrize("domain", DOMAINS)
def test_users_and_items_equal_the_equations(domain):
    known = DOMAINS[domain]
    system = small("mmsrec", known, perturbed=0.3).eval()
    tables = system.item_tables()
    items = torch.stack([plain_item(system, known, i) for i in range(1, N_ITEMS + 1)])
    users = torch.stack([plain_row(system, known, history)[-1] for history in HISTORIES])
    torch.testing.assert_close(system.candidates(tables), items, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(system.encode(tables, BATCH), users / 0.05, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(system.users(tables, BATCH), users / 0.05, rtol=1e-4, atol=1e-4)
    assert system.scores(tables, system.users(tables, BATCH)).abs().max() <= 20 + 1e-4  # cosine / 0.05


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("fate", ["mask", "same", "random"])
def test_loss_is_the_mean_over_all_masked_slots(domain, fate, monkeypatch):
    """With every slot selected, its last one being masked whatever becomes of the others."""
    known = DOMAINS[domain]
    shares = {"masked": 1.0, "masked_random": float(fate == "random"), "masked_same": float(fate == "same")}
    system = small("mmsrec", known, perturbed=0.3, **shares).eval()
    tables = system.item_tables()
    monkeypatch.setattr(torch, "randint", lambda low, high, size, device: torch.full(size, 11))
    losses = []
    for history, target in zip(HISTORIES, BATCH.targets.tolist(), strict=True):
        shown = {"mask": [0] * len(history), "same": history, "random": [11] * len(history)}[fate]
        logits = plain_row(system, known, shown) @ system.candidates(tables).T / 0.05
        losses.append(F.cross_entropy(logits, torch.tensor([*history, target]) - 1, reduction="none"))
    expected = torch.cat(losses).mean()
    torch.testing.assert_close(system.finetune_loss(tables, BATCH) / len(HISTORIES), expected, rtol=1e-4, atol=1e-4)


def test_without_other_masks_the_loss_is_that_of_the_targets():
    system = small("mmsrec", perturbed=0.3, masked=0.0).eval()
    tables = system.item_tables()
    logits = system.scores(tables, system.users(tables, BATCH))
    expected = F.cross_entropy(logits, BATCH.targets - 1, reduction="sum")
    torch.testing.assert_close(system.finetune_loss(tables, BATCH), expected)


def test_what_is_drawn():
    torch.manual_seed(0)
    system = small("mmsrec")
    items = torch.full((20_000, 7), 3)
    items[:, 5:] = 0
    five = rows([[3] * 5] * 20_000, [9] * 20_000)
    shown, targets = system.draw_masks(items, five, N_ITEMS)
    assert (shown[:, 5] == 0).all()  # the last slot is always masked
    assert (targets[:, 5] == 9).all()
    assert (targets[:, 6] == 0).all()
    shown, targets = shown[:, :5], targets[:, :5]
    selected = targets > 0
    assert (targets[selected] == 3).all()
    assert (shown[~selected] == 3).all()
    seen = torch.bincount(shown[selected], minlength=N_ITEMS + 1) / selected.sum()
    assert selected.float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert seen[0].item() == pytest.approx(0.8, abs=0.02)
    assert seen[3].item() == pytest.approx(0.1 + 0.1 / N_ITEMS, abs=0.01)
    assert seen[1:].min().item() == pytest.approx(0.1 / N_ITEMS, abs=0.005)
    torch.manual_seed(5)
    first = system.draw_masks(items, five, N_ITEMS)
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first, system.draw_masks(items, five, N_ITEMS), strict=True))


def test_max_length_counts_events_beside_the_masked_slot():
    assert small("mmsrec", max_length=19).position.weight.shape[0] == 20


def test_nothing_known_of_an_item_is_the_mask():
    """Item 12 has neither text nor image: no NaN, neither forward nor backward."""
    system = small("mmsrec", perturbed=0.3)
    vectors, x, _ = system.item_tables()
    assert torch.equal(x[12], x[0])
    assert not torch.equal(x[11], x[0])
    alone = rows([[12, 12]], [12])
    loss = system.finetune_loss((vectors, x, system.has), alone)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in system.parameters() if p.grad is not None)


def test_a_missing_modality_changes_nothing():
    """Whatever stands where an item has no image."""
    known = catalogue()
    noisy = replace(known, image=torch.where(known.has_image[:, None], known.image, 100.0))
    a, b = (small("mmsrec", k).eval() for k in (known, noisy))
    ta, tb = a.item_tables(), b.item_tables()
    assert torch.equal(ta[0], tb[0])
    assert torch.equal(a.users(ta, BATCH), b.users(tb, BATCH))


def test_a_white_picture_counts_as_a_picture():
    known = catalogue()
    white = replace(known, image=torch.where(known.has_image[:, None], known.image, 1.0), missing_image="white")
    assert small("mmsrec", known).has[-3:].tolist() == [[True, True], [True, False], [False, False]]
    assert small("mmsrec", white).has[-3:].tolist() == [[True, True], [True, True], [False, True]]


def test_many_items_give_the_same_with_less_memory(monkeypatch):
    """Tables and gradients are those of one piece; dropout is drawn again as it was drawn first."""

    def gradients(**settings):
        system = small("mmsrec", perturbed=0.3, **settings)
        torch.manual_seed(1)
        vectors, x, has = system.item_tables()
        torch.manual_seed(2)
        system.finetune_loss((vectors, x, has), BATCH).backward()
        return vectors.detach(), {name: p.grad for name, p in system.named_parameters()}

    whole = gradients(**WITHOUT_DROPOUT)
    monkeypatch.setattr(mmsrec, "KEPT_ITEMS", 4)
    monkeypatch.setattr(mmsrec, "ITEMS_AT_ONCE", {"cpu": 5})
    torch.testing.assert_close(gradients(**WITHOUT_DROPOUT), whole, rtol=1e-4, atol=1e-5)
    recomputed = gradients()
    monkeypatch.setattr(mmsrec, "checkpoint", lambda function, *inputs, use_reentrant: function(*inputs))
    torch.testing.assert_close(recomputed, gradients())


def test_contrast_by_hand():
    """Two orthogonal pairs at temperature 1/2: each row has e^2 for its own against e^0."""
    one = torch.eye(2)
    assert contrast(one, one, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))
    # swapped: each row has e^0 for its own against e^2
    assert contrast(one, one.flip(0), 0.5).item() == pytest.approx(math.log(1 + math.exp(2)))


@pytest.mark.parametrize("domain", DOMAINS)
def test_alignment_equals_its_terms(domain):
    """Without dropout both views are the same; 11 lacks an image, 12 everything."""
    known = DOMAINS[domain]
    system = small("mmsrec", known, perturbed=0.3).eval()
    items = torch.tensor([3, 5, 8, 11, 12])

    def views(those, *only):
        return torch.stack([plain_item(system, known, i, only) for i in those])

    def term(a, b):
        logits = a @ b.T / 0.05
        return (-logits.log_softmax(1).diagonal().mean() - logits.log_softmax(0).diagonal().mean()) / 2

    texts, images = views([3, 5, 8, 11], "text"), views([3, 5, 8], "image") if domain != "text" else None
    if domain == "text":
        expected = term(texts, texts)
    elif domain == "image":
        expected = term(images, images)
    else:
        items_ = views([3, 5, 8, 11], "text", "image")
        pairs = [(texts, texts), (images, images), (texts[:3], images), (items_, items_)]
        expected = torch.stack([term(a, b) for a, b in pairs]).mean()
    torch.testing.assert_close(system.alignment_loss(system.item_tables(), items), expected, rtol=1e-4, atol=1e-4)


def test_alignment_of_items_that_nothing_can_be_said_of():
    system = small("mmsrec")
    assert system.alignment_loss(system.item_tables(), torch.tensor([12])).item() == 0


def test_pretraining_adds_the_alignment():
    system, weighted = (small("mmsrec", perturbed=0.3, alignment=a).eval() for a in (0.0, 2.0))
    tables = system.item_tables()
    torch.manual_seed(3)
    masked = system.pretrain_loss(tables, BATCH)
    torch.manual_seed(3)
    assert masked.item() == pytest.approx(system.finetune_loss(tables, BATCH).item() / len(HISTORIES))
    torch.manual_seed(3)
    both = weighted.pretrain_loss(tables, BATCH)
    aligned = weighted.alignment_loss(tables, BATCH.targets.unique())
    assert both.item() == pytest.approx((masked + 2 * aligned).item(), rel=1e-4)


def test_all_but_the_positions_is_carried_over(tmp_path):
    """To a domain without images too; nothing is frozen."""
    first = small("mmsrec", perturbed=0.3, pretraining=True)
    settings = {"model": "mmsrec", "seed": 0}
    write_run(tmp_path, settings, first, History(), {}, {})
    second = small("mmsrec", TEXT_ONLY)
    fresh = second.position.weight.clone()
    load_pretrained(second, tmp_path)
    freeze(second)
    assert torch.equal(second.position.weight, fresh)
    for name, p in second.named_parameters():
        assert p.requires_grad
        if name != "position.weight":
            assert torch.equal(p, dict(first.named_parameters())[name]), name


def test_wrong_settings_are_one_sentence():
    with pytest.raises(UserError, match="not a multiple of heads 3"):
        small("mmsrec", heads=3)
    with pytest.raises(UserError, match="sum is above 1"):
        small("mmsrec", masked_random=0.6, masked_same=0.5)
    with pytest.raises(UserError, match="neither text nor image"):
        small("mmsrec", Catalogue(n_items=3))
