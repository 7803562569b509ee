import itertools
import logging
import math
from dataclasses import replace

import pytest
import torch
from small_systems import N_ITEMS, catalogue, rows, small, small_settings

from mmm4rec.config import read_system
from mmm4rec.models import s3rec
from mmm4rec.models.base import Rows, build
from mmm4rec.training.finetune import freeze

BATCH = rows([[3, 4, 5, 6, 7, 8], [1, 2, 12, 9, 0, 0], [11, 0, 0, 0, 0, 0]])  # 12 has neither text nor attributes
REAL = BATCH.items > 0
MASK = N_ITEMS + 1

both_sources = pytest.mark.parametrize("source", ["text", "metadata"])


def first_stage_of(source: str, n_items: int = N_ITEMS, *, perturbed: float = 0.3, **settings):
    """A system of which brands and categories are the attributes, or texts although there are such."""
    known = catalogue(n_items, metadata=True)
    return small("s3rec", known, perturbed=perturbed, attribute_source=source, **settings).eval()


def fixed_draws(monkeypatch) -> s3rec.Draws:
    """Masks, negatives and segments that a test can look at, for the batch in one piece."""
    draws = s3rec.Draws(
        masked=torch.tensor([[0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool(),
        negatives=torch.tensor([[1, 2, 9, 10, 11, 12], [3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6, 7]]),
        segment=torch.tensor([[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool(),
        foreign=torch.tensor([[0, 0, 2, 12, 0, 0], [7, 8, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0]]),
    )
    monkeypatch.setattr(s3rec, "draw", lambda *_: draws)
    monkeypatch.setattr(s3rec, "by_length", lambda encode, piece: encode(piece))
    return draws


def both_directions(system, ids):
    """States [L, D] of one row without padding, from the Transformer's blocks; the mask is id N + 1."""
    table = torch.cat([system.item.weight, system.first_stage.mask[None]])
    x = system.norm(table[ids] + system.position.weight[: len(ids)])[None]
    for attention, feed_forward in zip(system.encoder.attention, system.encoder.feed_forward, strict=True):
        x = feed_forward(attention(x, x, None, causal=False))
    return x[0]


def reference(system, draws, labels):
    """The four objectives, position by position and attribute by attribute, over the whole catalogue."""
    s, stage, known = system.settings, system.first_stage, catalogue(metadata=True)
    if s.attribute_source == "text":
        f = torch.relu(stage.attribute.text @ stage.attribute.weight.T + stage.attribute.bias)
        of = [{i} if known.has_text[i] else set() for i in range(N_ITEMS + 1)]
    else:
        f = stage.attribute.weight
        of = [{a for a in attributes if a} for attributes in known.attributes.tolist()]
    total = 0.0
    for b, (row, length) in enumerate(zip(BATCH.items.tolist(), BATCH.lengths.tolist(), strict=True)):
        items, masked, segment = row[:length], draws.masked[b].tolist(), draws.segment[b].tolist()
        states = both_directions(system, [MASK if m else i for i, m in zip(items, masked, strict=False)])
        for p, item in enumerate(items):
            label = labels[b][p]
            to = stage.map(states[p]) if masked[p] else stage.aap(states[p])
            weight = s.map_weight if masked[p] else s.aap_weight
            if of[label] or label == 0:
                for a in set().union(*of):
                    share = torch.sigmoid(f[a] @ to)
                    total -= weight * (share if a in of[label] else 1 - share).log()
            if masked[p]:
                own, other = (
                    torch.sigmoid(system.item.weight[i] @ stage.mip(states[p])) for i in (item, draws.negatives[b, p])
                )
                total -= s.mip_weight * torch.sigmoid(own - other).log()
        if length == 1:
            continue
        foreign = draws.foreign[b].tolist()
        rest, own, other = (
            both_directions(system, ids)[-1]
            for ids in (
                [MASK if segment[p] else items[p] for p in range(length)],
                [items[p] if segment[p] else MASK for p in range(length)],
                [foreign[p] if segment[p] else MASK for p in range(length)],
            )
        )
        own, other = (torch.sigmoid(stage.sp(rest) @ x) for x in (own, other))
        total -= s.sp_weight * torch.sigmoid(own - other).log()
    return total / len(BATCH.items)


@both_sources
def test_the_first_stage_equals_the_equations(monkeypatch, source):
    system = first_stage_of(source)
    draws = fixed_draws(monkeypatch)
    expected = reference(system, draws, BATCH.items.tolist())
    torch.testing.assert_close(system.pretrain_loss(system.item_tables(), BATCH), expected)


@both_sources
def test_misaligned_labels_are_an_option(monkeypatch, source):
    """Of six places a row of four has its items in the last four; their labels start with the third place's."""
    system = first_stage_of(source, defects=["misaligned_labels"])
    draws = fixed_draws(monkeypatch)
    labels = [[3, 4, 5, 6, 7, 8], [12, 9, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert system._labels(BATCH).tolist() == labels
    torch.testing.assert_close(system.pretrain_loss(system.item_tables(), BATCH), reference(system, draws, labels))


def test_shifted_positions_are_an_option(monkeypatch):
    """In the first stage a row ends at the last position: as if every position vector stood that much further left."""
    shifted = small("s3rec", perturbed=0.3, max_length=9, defects=["shifted_positions"]).eval()
    plain = small("s3rec", perturbed=0.3, max_length=9).eval()
    plain.load_state_dict(shifted.state_dict())
    tables = shifted.item_tables()
    torch.testing.assert_close(shifted.users(tables, BATCH), plain.users(tables, BATCH))  # stage two
    draws = fixed_draws(monkeypatch)
    for b, start in enumerate((3, 5, 8)):
        row = rows([BATCH.items[b].tolist()])
        drawn = s3rec.Draws(*(x[b : b + 1] for x in vars(draws).values()))
        monkeypatch.setattr(s3rec, "draw", lambda *_, drawn=drawn: drawn)
        with torch.no_grad():
            plain.position.weight.copy_(shifted.position.weight.roll(-start, 0))
        torch.testing.assert_close(shifted.pretrain_loss(tables, row), plain.pretrain_loss(tables, row))


@both_sources
def test_drawn_attributes_estimate_the_sum_over_all(monkeypatch, source):
    system, few = first_stage_of(source), first_stage_of(source, attributes=4)
    fixed_draws(monkeypatch)
    with torch.no_grad():
        exact = system.pretrain_loss(system.item_tables(), BATCH)
        drawn = torch.stack([few.pretrain_loss(few.item_tables(), BATCH) for _ in range(600)])
    assert drawn.std() > 0
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / math.sqrt(600)


def test_no_more_attributes_than_asked_for_are_computed():
    system = small("s3rec", catalogue(300), attributes=20)
    attributes = system._attributes(BATCH.items[REAL])
    assert len(attributes.drawn.unique()) == 20
    assert len(attributes.vectors) <= 1 + 20 + int(REAL.sum())
    assert attributes.scale == pytest.approx(299 / 20)
    attributes = first_stage_of("metadata", 300, attributes=4)._attributes(torch.tensor([4]))  # which has 2 and 4
    assert len(attributes.drawn.unique()) == 4
    assert len(attributes.vectors) == 1 + len({*attributes.drawn.tolist(), 2, 4})
    assert attributes.scale == pytest.approx(9 / 4)


@pytest.mark.parametrize("size", range(1, 6))
def test_the_mean_over_all_draws_is_the_sum_over_all(size):
    """To the last of them, of positions with none, one and several attributes."""
    torch.manual_seed(0)
    asked, vectors = torch.randn(3, 4), torch.cat([torch.zeros(1, 4), torch.randn(5, 4)])
    own = [set(), {2}, {1, 3, 5}]
    has = torch.tensor([[0, 0, 0], [2, 0, 0], [1, 3, 5]])
    found = []
    for drawn in itertools.combinations(range(1, 6), size):
        is_drawn = torch.tensor([a in drawn for a in range(6)])
        step = s3rec.Attributes(vectors, torch.arange(6), torch.tensor(drawn), is_drawn, 5 / size)
        found.append(s3rec.attribute_prediction(asked, has, step))
    share = torch.sigmoid(asked @ vectors.T)
    expected = [-sum((share[p, a] if a in own[p] else 1 - share[p, a]).log() for a in range(1, 6)) for p in range(3)]
    torch.testing.assert_close(torch.stack(found).mean(0), torch.stack(expected))


def test_draws():
    torch.manual_seed(0)
    n = 400
    many = Rows(BATCH.items.repeat(n, 1), BATCH.lengths.repeat(n), BATCH.targets.repeat(n))
    events = many.items[many.items > 0]
    draws = s3rec.draw(many, events, N_ITEMS, 0.2)
    assert not draws.masked[many.items == 0].any()
    assert draws.masked[many.items > 0].float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert not (draws.negatives[..., None] == many.items[:, None]).any()
    sizes = draws.segment.sum(1).view(n, 3)
    assert [sorted(set(column.tolist())) for column in sizes.T] == [[1, 2, 3], [1, 2], [1]]
    assert not draws.segment[many.items == 0].any()
    starts = draws.segment.byte().argmax(1)
    assert sorted(set(starts[::3].tolist())) == [0, 1, 2, 3, 4, 5]
    assert ((draws.foreign > 0) == draws.segment).all()
    text = ",".join(map(str, events.tolist()))
    for start, segment, foreign in zip(starts.tolist(), draws.segment, draws.foreign, strict=True):
        assert (segment.nonzero()[:, 0] == start + torch.arange(int(segment.sum()))).all()  # one run
        assert ",".join(map(str, foreign[segment].tolist())) in text  # cut from the batch in one piece


def test_below_is_uniform_and_never_reaches_its_limit():
    torch.manual_seed(0)
    drawn = s3rec.below(torch.full((6000,), 3))
    assert (drawn.bincount() / 6000).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


@both_sources
def test_each_stage_trains_what_it_uses(source):
    system = first_stage_of(source, mask_ratio=0.5).train()
    system.pretrain_loss(system.item_tables(), BATCH).backward()
    assert [n for n, p in system.named_parameters() if p.grad is None or not p.grad.any()] == []
    system.zero_grad()
    freeze(system)
    frozen = {name for name, p in system.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in system.named_parameters() if name.startswith("first_stage.")}


def test_the_first_stage_lowers_its_loss_and_text_tells_items_apart():
    """Attributes of the right item score highest after some steps: labels stand where their items stand."""
    torch.manual_seed(0)
    system = small("s3rec", dropout=0.0, mask_ratio=0.3)
    optimizer = torch.optim.Adam(system.parameters(), lr=0.01)
    losses = []
    for _ in range(150):
        loss = system.pretrain_loss(system.item_tables(), BATCH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    stage = system.first_stage
    with torch.no_grad():
        x = system.embed(torch.nn.functional.embedding(BATCH.items, system.item.weight))
        states = system.encoder(x, REAL)[REAL]
        best = (stage.aap(states) @ stage.attribute.table(torch.arange(1, N_ITEMS + 1))[1:].T).argmax(1) + 1
    items = BATCH.items[REAL]
    told = (best == items)[items != 12]
    assert told.float().mean() > 0.9


def test_brands_and_categories_are_told_apart():
    """After some steps those of the item score above 0, all others below."""
    torch.manual_seed(0)
    system = first_stage_of("metadata", perturbed=0.0, dropout=0.0).train()
    optimizer = torch.optim.Adam(system.parameters(), lr=0.01)
    for _ in range(300):
        loss = system.pretrain_loss(system.item_tables(), BATCH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stage = system.first_stage
    with torch.no_grad():
        x = system.embed(torch.nn.functional.embedding(BATCH.items, system.item.weight))
        told = stage.aap(system.encoder(x, REAL)[REAL]) @ stage.attribute.weight.T > 0
    items = BATCH.items[REAL]
    holds = torch.stack([(catalogue(metadata=True).attributes == a).any(dim=1) for a in range(10)], dim=1)[items]
    assert (told == holds)[items != 12, 1:].float().mean() > 0.95


@both_sources
def test_after_the_first_stage_it_is_sasrec(source):
    system = first_stage_of(source)
    plain = small("sasrec", dropout=0.5).eval()
    state = {name: t for name, t in system.state_dict().items() if not name.startswith("first_stage.")}
    plain.load_state_dict(state)
    tables = system.item_tables()
    assert len(tables) == 1  # text is not even computed
    torch.testing.assert_close(system.users(tables, BATCH), plain.users(plain.item_tables(), BATCH))


def test_vectors_of_attributes_are_saved_and_fit_again():
    system = first_stage_of("metadata")
    assert system.first_stage.attribute.weight.shape == (1 + 9, 16)
    assert not any("text" in name or "has" in name for name in system.state_dict())
    again = build("s3rec", system.settings.model_dump(), catalogue(metadata=True)).eval()
    again.load_state_dict(system.state_dict())
    losses = []
    for one in (system, again):
        torch.manual_seed(5)
        losses.append(one.pretrain_loss(one.item_tables(), BATCH))
    assert torch.equal(*losses)


def test_a_domain_with_brands_needs_no_text():
    small("s3rec", replace(catalogue(metadata=True), text=None, has_text=None))


def test_without_brands_and_categories_texts_are_the_attributes(caplog):
    """As if they were asked for, and as in runs of before that do not say."""
    settings = small_settings("s3rec")
    unsaid = {name: value for name, value in settings.items() if name != "attribute_source"}
    asked, has = settings | {"attribute_source": "text"}, catalogue(metadata=True)
    assert settings["attribute_source"] == "metadata"
    found = []
    for chosen, known in ((settings, catalogue()), (asked, catalogue()), (asked, has), (unsaid, has)):
        caplog.clear()
        torch.manual_seed(0)
        with caplog.at_level(logging.INFO):
            system = build("s3rec", chosen, known)
        assert "each item's text vector is the one that it has" in caplog.text
        loss = system.pretrain_loss(system.item_tables(), BATCH)
        found.append({"loss": loss, **system.state_dict()})
    maps = [f"{name}.{kind}" for name in ("attribute", "aap", "mip", "map", "sp") for kind in ("weight", "bias")]
    names = [name.removeprefix("first_stage.") for name in found[0] if name.startswith("first_stage.")]
    assert names == ["mask", *maps]  # by which finished runs are read
    for other in found[1:]:
        assert list(other) == list(found[0])
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def test_noise_stands_in_the_place_of_texts_whatever_else_is_known():
    noisy = small("s3rec", catalogue(metadata=True), defects=["noise_features"])
    assert isinstance(noisy.first_stage.attribute, s3rec.TextAttributes)


def test_noise_features_are_an_option_that_a_saved_run_keeps():
    system = small("s3rec", defects=["noise_features"])
    text = system.first_stage.attribute.text
    assert text.std().item() == pytest.approx(0.02, rel=0.2)
    assert not system.first_stage.described[[0, N_ITEMS]].any()
    torch.manual_seed(5)
    again = build("s3rec", system.settings.model_dump(), catalogue())
    again.load_state_dict(system.state_dict())
    assert torch.equal(again.first_stage.attribute.text, text)
    assert not any("text" in name for name in small("s3rec").state_dict())


def test_its_settings_file_builds():
    file = read_system("s3rec")
    system = build("s3rec", file.settings, catalogue())
    assert system.first_stage.aap.weight.shape == (300, 300)
    assert file.indomain.epochs == 300


def test_it_says_what_the_attributes_are(caplog):
    with caplog.at_level(logging.INFO):
        small("s3rec", catalogue(metadata=True))
    assert "attributes: 9 brands and categories, of 11 items" in caplog.text
