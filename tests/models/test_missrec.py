from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_systems import catalogue, rows, small

from mmm4rec.config import Config, pretrain_key, read_system
from mmm4rec.errors import UserError
from mmm4rec.evaluation.ranking import rank_targets
from mmm4rec.models import missrec
from mmm4rec.models.missrec import distinct
from mmm4rec.nn.augment import drop_items
from mmm4rec.training.data import load_events

BATCH = rows([[3, 4, 5, 6, 7, 8], [1, 2, 3, 9, 0, 0], [11, 12, 10, 0, 0, 0]], [9, 10, 9])


def system_with_interests(key="missrec", known=None, **options):
    system = small(key, known, **{"perturbed": 0.3} | options).eval()
    torch.manual_seed(4)
    system.start_epoch(1)
    return system


def masked(**changes):
    return replace(catalogue(), missing_image="mask", **changes)


# -- interests


def test_distinct_ids_are_those_of_a_set():
    ids = torch.randint(0, 6, (50, 9), generator=torch.Generator().manual_seed(0))
    ids[0] = 0
    ids[1] = 3
    found, known = distinct(ids)
    for row, tokens, mask in zip(ids.tolist(), found, known, strict=True):
        assert tokens[mask].tolist() == sorted(set(row) - {0})


def test_interests_are_the_nearest_means_of_the_vectors_of_both_modalities():
    system = system_with_interests(interest_share=0.2)
    assert system.interests.shape == (6, 16)  # a fifth of twice twelve, and the padding
    assert not system.interests[0].any()
    assert system.clusters[0].tolist() == [0, 0]
    for column, vectors in enumerate(system.modalities()):
        nearest = torch.cdist(vectors[1:], system.interests[1:]).argmin(1) + 1
        assert torch.equal(system.clusters[1:, column], nearest)


def test_interests_repeat_under_a_seed_are_kept_and_follow_the_adaptors():
    one, two = system_with_interests(), system_with_interests()
    assert torch.equal(one.interests, two.interests)
    assert torch.equal(one.clusters, two.clusters)
    assert {"interests", "clusters"} <= set(one.state_dict())
    with torch.no_grad():
        one.adaptors["text"].bias += 1
    one.start_epoch(2)
    assert not torch.equal(one.interests, two.interests)


def test_interests_belong_to_a_domain_and_the_rest_but_ids_is_carried_over():
    system = small("missrec")
    left = {name for name in system.state_dict() if not system.carried_over(name)}
    assert left == {"item.weight", "interests", "clusters"}


def test_pretraining_has_fewer_interests_and_no_ids():
    system = small("missrec", pretraining=True, pretrain_interest_share=0.1)
    assert len(system.interests) == 3 + 1
    assert not system.has_ids


# -- rows


def plain_user(system, items):
    """One row by itself, its interests a set."""
    tables = system.item_tables()
    interests = sorted(set(system.clusters[items].flatten().tolist()) - {0})
    memory = system.network.encode(system.interests[interests][None], torch.ones(1, len(interests), dtype=torch.bool))
    total = sum(memory[0])
    x = system.norm(tables[0][items] + system.position.weight[: len(items)])
    last = system.network.decode_last(x[None], torch.tensor([len(items)]), memory, memory[..., 0] == memory[..., 0])
    return F.normalize(last[0], dim=0), total @ total / len(total)


@pytest.mark.parametrize("key", ["missrec", "missrec_noid"])
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_users_and_penalties_are_those_of_single_rows_with_sets_of_interests(key, share):
    system = system_with_interests(key, interest_share=share)
    users, alike = system.users_and_penalties(system.item_tables(), BATCH)
    for row, length, user, penalty in zip(BATCH.items, BATCH.lengths, users, alike, strict=True):
        want, wanted = plain_user(system, row[:length].tolist())
        torch.testing.assert_close(user, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(penalty, wanted, rtol=1e-4, atol=1e-5)


def test_every_event_may_look_at_every_other():
    """The decoder is not causal, so with two layers the first event knows of the last."""
    system = system_with_interests(layers=2)
    tables = system.item_tables()
    seen = []
    system.network.decoder[0].register_forward_hook(lambda *args: seen.append(args[-1]))
    for items in ([3, 4, 5], [3, 4, 6]):
        system.encode(tables, rows([items]))
    assert not torch.allclose(seen[0][0, 0], seen[1][0, 0])


# -- scores


def plain_scores(system, users):
    """Softmax over the modalities that an item has, mean with the ids."""
    text, image = (F.normalize(part, dim=-1)[1:] for part in system.modalities())
    parts = torch.stack([users @ text.T, users @ image.T], -1)
    weights = system.fusion * parts
    if system.has_image is not None:
        weights[..., 1] = weights[..., 1].masked_fill(~system.has_image[1:], -torch.inf)
    scores = (parts * weights.softmax(-1)).sum(-1)
    if system.has_ids:
        scores = (users @ F.normalize(system.item.weight[1:], dim=-1).T + 2 * scores) / 3
    return scores / 0.07


@pytest.mark.parametrize("key", ["missrec", "missrec_noid"])
@pytest.mark.parametrize("known", [catalogue(), masked()], ids=["zero", "mask"])
@pytest.mark.parametrize("fusion", [0.0, -3.0, 40.0])
def test_scores_weigh_the_modalities_user_by_user(key, known, fusion):
    system = system_with_interests(key, known)
    system.fusion.data.fill_(fusion)
    tables = system.item_tables()
    users = system.users(tables, BATCH)
    torch.testing.assert_close(system.scores(tables, users), plain_scores(system, users), rtol=1e-4, atol=1e-4)


def test_fusion_starts_as_the_mean():
    assert not small("missrec").fusion.any()


@pytest.mark.parametrize("lacks", ["text", "image"])
@pytest.mark.parametrize("key", ["missrec", "missrec_noid"])
@pytest.mark.parametrize("policy", ["zero", "mask"])
def test_a_domain_of_one_modality_has_no_fusion(lacks, key, policy):
    known = replace(catalogue(), missing_image=policy, **{lacks: None})
    system = system_with_interests(key, known)
    tables = system.item_tables()
    users = system.users(tables, BATCH)
    assert torch.isfinite(users).all()
    cosines = F.cosine_similarity(users[:, None], tables[0][None, 1:], dim=-1)
    torch.testing.assert_close(system.scores(tables, users), cosines / 0.07, rtol=1e-4, atol=1e-4)
    assert not hasattr(system, "fusion")
    assert system.clusters.shape == (13, 1)
    loss = system.train().finetune_loss(system.item_tables(), BATCH)
    loss.backward()
    assert [n for n, p in system.named_parameters() if p.grad is None or not p.grad.any()] == []
    pretrained = small(key, known, pretraining=True)
    assert torch.isfinite(pretrained.pretrain_loss(pretrained.item_tables(), BATCH))


def test_a_missing_image_is_the_adaptors_bias():
    system = system_with_interests("missrec_noid")
    text, image = system.modalities()
    assert torch.equal(image[11], system.adaptors["image"].bias)
    torch.testing.assert_close(system.item_tables()[0][11], text[11] + system.adaptors["image"].bias)
    assert system.clusters[11, 1] == system.clusters[12, 1] > 0


def test_a_missing_image_is_left_out_where_the_policy_says_so():
    system = system_with_interests("missrec_noid", masked())
    text, _ = system.modalities()
    tables = system.item_tables()
    assert torch.equal(tables[0][[11, 12]], text[[11, 12]])
    assert system.clusters[[11, 12], 1].tolist() == [0, 0]
    assert len(system.interests) == 11 + 1  # half of twelve texts and ten images
    users = system.users(tables, BATCH)
    cosines = users @ F.normalize(text[[11, 12]], dim=-1).T / 0.07
    torch.testing.assert_close(system.scores(tables, users)[:, [10, 11]], cosines, rtol=1e-4, atol=1e-4)


def test_ranks_are_those_of_its_scores(make_domain):
    events = load_events(
        [make_domain([[(s * k) % 12 + 1 for k in range(3 + s % 4)] for s in range(1, 15)] + [[12] * 4])]
    )
    system = system_with_interests()
    system.fusion.data.fill_(5.0)
    targets = events.test_rows()
    cut = events.batch(targets, 6)
    scores = plain_scores(system, system.users(system.item_tables(), cut)).detach()
    own = scores[torch.arange(len(targets)), cut.targets - 1]
    assert rank_targets(system, events, targets).tolist() == (scores >= own[:, None]).sum(1).tolist()
    for row, target in enumerate(targets.tolist()):
        seen = events.items[events.first[target] : target]
        scores[row, seen[seen != cut.targets[row]] - 1] = -torch.inf
    assert rank_targets(system, events, targets, mask_seen=True).tolist() == (scores >= own[:, None]).sum(1).tolist()


# -- losses


def test_finetuning_loss_is_cross_entropy_and_all_penalties():
    system = system_with_interests(orthogonality=0.01)
    tables = system.item_tables()
    users, alike = system.users_and_penalties(tables, BATCH)
    losses = [-F.log_softmax(s, 0)[t - 1] for s, t in zip(plain_scores(system, users), [9, 10, 9], strict=True)]
    want = sum(losses) / 3 + 0.01 * sum(alike)
    torch.testing.assert_close(system.finetune_loss(tables, BATCH) / 3, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("known", [catalogue(), masked()], ids=["zero", "mask"])
@pytest.mark.parametrize("duplicates", ["masked", "kept"])
def test_pretraining_loss_is_that_of_a_loop(duplicates, known, monkeypatch):
    """The other view of a row is the user of its other items: text, image and interests of the same ones."""
    others = [[3, 5, 8], [1, 9], [11, 12, 10]]
    weights = {"orthogonality": 0.01, "view_weight": 0.5, "view_drop_share": 0.4, "duplicates": duplicates}
    system = system_with_interests("missrec", known, pretraining=True, **weights)
    tables = system.item_tables()
    users, alike = system.users_and_penalties(tables, BATCH)

    def dropped(items, lengths, share):
        assert (items is BATCH.items, lengths is BATCH.lengths, share) == (True, True, 0.4)
        return rows([row + [0] * (6 - len(row)) for row in others]).items, torch.tensor([len(row) for row in others])

    monkeypatch.setattr("mmm4rec.models.missrec.drop_items", dropped)
    among = plain_scores(system, users)[:, [8, 9, 8]]
    viewed, views_alike = (torch.stack(parts) for parts in zip(*(plain_user(system, r) for r in others), strict=True))
    views = users @ viewed.T / 0.07
    total = 0.0
    for b in range(3):
        against = [c for c in range(3) if c != b and (duplicates == "kept" or (b, c) not in [(0, 2), (2, 0)])]
        for logits, weight in ((among, 1.0), (views, 0.5)):
            total -= weight * F.log_softmax(logits[b, [b, *against]], 0)[0] / 3
    want = total + 0.01 * (sum(alike) + sum(views_alike))
    torch.testing.assert_close(system.pretrain_loss(tables, BATCH), want, rtol=1e-4, atol=1e-4)


# -- texts with words left out

#: where rows have items by such texts, in a draw that is held fixed
CHOSEN = torch.tensor([[1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()


def plain_view_loss(system, known):
    """The loss with views in which the chosen items have fewer words, row by row; images and interests are theirs."""
    features = [getattr(known, m) for m in system.adaptors]
    fewer = [known.text_dropped, *features[1:]]

    def user(row, chosen):
        n = sum(item > 0 for item in row)
        items = [
            sum(adaptor(f[i]) for adaptor, f in zip(system.adaptors.values(), fewer if c else features, strict=True))
            for i, c in zip(row[:n], chosen, strict=False)
        ]
        interests = sorted(set(system.clusters[row[:n]].flatten().tolist()) - {0})
        everywhere = torch.ones(1, len(interests), dtype=torch.bool)
        memory = system.network.encode(system.interests[interests][None], everywhere)
        x = system.norm(torch.stack(items) + system.position.weight[:n])
        last = system.network.decode_last(x[None], torch.tensor([n]), memory, everywhere)
        total = sum(memory[0])
        return F.normalize(last[0], dim=0), total @ total / len(total)

    whole, views = (
        [user(row, chosen) for row, chosen in zip(BATCH.items.tolist(), choice.tolist(), strict=True)]
        for choice in (torch.zeros_like(CHOSEN), CHOSEN)
    )
    users = torch.stack([u for u, _ in whole])
    among = system.fused(users, *(table[BATCH.targets] for table in system.item_tables()[3:]))
    loss = 0.0
    for b in range(3):
        others = [b, *(c for c in range(3) if c != b and (b, c) not in [(0, 2), (2, 0)])]
        between = torch.stack([users[b] @ views[c][0] / 0.07 for c in others])
        for logits, weight in ((among[b, others], 1.0), (between, 0.5)):
            loss -= weight * F.log_softmax(logits, 0)[0] / 3
    return loss + 0.01 * sum(alike for _, alike in whole + views)


@pytest.mark.parametrize("lacks", [{}, {"image": None}])
def test_views_of_texts_that_lack_words_equal_a_plain_loop_with_its_gradients(monkeypatch, lacks):
    known = replace(catalogue(fewer_words=True), **lacks)
    weights = {"orthogonality": 0.01, "view_weight": 0.5, "word_drop_batches": 1.0}
    system = system_with_interests(known=known, pretraining=True, **weights)
    monkeypatch.setattr(missrec, "exchange_items", lambda items, _share, shift: items + shift * CHOSEN)
    results = []
    for loss in (system.pretrain_loss(system.item_tables(), BATCH), plain_view_loss(system, known)):
        system.zero_grad()
        loss.backward()
        results.append((loss.detach(), {name: p.grad.clone() for name, p in system.named_parameters()}))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert results[0][1]["adaptors.text.weight"].any()


def test_a_share_of_the_batches_has_views_of_such_texts():
    system = small("missrec", catalogue(fewer_words=True), pretraining=True)
    tables, long = system.item_tables(), rows([[4, 5, 6, 7, 8, 9]] * 100)
    torch.manual_seed(0)
    views = [system.other_view(tables, long) for _ in range(1000)]
    words = [view.items for (vectors, *_), view in views if len(vectors) == 2 * 13]
    assert abs(len(words) / 1000 - 0.1) < 0.03
    assert abs((torch.stack(words) > 12).float().mean() - 0.2) < 0.01


def test_without_such_texts_the_same_is_drawn_and_computed_as_if_there_never_were_any():
    """To the last bit: finished runs stand on it."""
    system = small("missrec", pretraining=True, perturbed=0.3).train()
    torch.manual_seed(4)
    system.start_epoch(1)
    tables = system.item_tables()
    torch.manual_seed(5)
    loss, following = system.pretrain_loss(tables, BATCH), torch.rand(3)
    torch.manual_seed(5)
    users, alike = system.users_and_penalties(tables, BATCH)
    items, lengths = drop_items(BATCH.items, BATCH.lengths, 0.2)
    views, views_alike = system.users_and_penalties(tables, type(BATCH)(items, lengths, BATCH.targets))
    logits = system.fused(users, *(table[BATCH.targets] for table in tables[3:]))
    logits = missrec.without_duplicates(logits, BATCH.targets, "masked")
    want = F.cross_entropy(logits, torch.arange(3))
    want = want + 1e-3 * missrec.in_batch_cross_entropy(users / 0.07, views, BATCH.targets)
    assert torch.equal(loss, want + 1e-4 * (alike.sum() + views_alike.sum()))
    assert torch.equal(following, torch.rand(3))


def test_it_says_whether_words_are_left_out(caplog):
    with caplog.at_level("INFO"):
        small("missrec", pretraining=True)
        small("missrec", catalogue(fewer_words=True))
        small("missrec", catalogue(fewer_words=True), pretraining=True, word_drop_batches=0.25)
    assert [r.message for r in caplog.records if "words left out" in r.message] == [
        "no features of texts with words left out: the other view of a row always has items left out",
        "other views: texts with words left out in 25 % of the batches",
    ]


# -- transfer


def test_both_systems_start_from_the_same_pretrained_weights():
    config = Config(targets=["a"], sources=["b"], systems=["missrec"], domains={k: {"interactions": k} for k in "ab"})
    assert pretrain_key(config, "missrec_noid") == pretrain_key(config, "missrec") == "missrec"
    assert read_system("missrec_noid").reads == ["text", "image"]
    assert set(small("missrec").state_dict()) - set(small("missrec_noid").state_dict()) == {"item.weight"}


def test_wrong_settings_are_one_sentence():
    with pytest.raises(UserError, match="not a multiple of heads 3"):
        small("missrec", heads=3)
    with pytest.raises(UserError, match="neither text nor image"):
        small("missrec", replace(catalogue(), text=None, image=None))
