import logging

import pytest
import torch
import torch.nn.functional as F
from small_systems import catalogue, rows, small

from mmm4rec.config import parse_config, pretrain_key, read_system
from mmm4rec.models import unisrec
from mmm4rec.models.base import build
from mmm4rec.nn.augment import drop_items
from mmm4rec.training.finetune import freeze

BATCH = rows([[3, 4, 5, 6], [1, 2, 0, 0], [11, 0, 0, 0], [7, 8, 9, 0]], [9, 10, 9, 1])


def test_scores_are_cosines_over_the_temperature():
    system = small("unisrec", perturbed=0.3).eval()
    tables = system.item_tables()
    users = system.users(tables, BATCH)
    torch.testing.assert_close(users.norm(dim=1), torch.ones(4))
    x = system.item.adaptor(catalogue().text) + system.ids.weight
    expected = torch.nn.functional.cosine_similarity(users[:, None], x[None, 1:], dim=-1) / 0.07
    torch.testing.assert_close(system.scores(tables, users), expected)


@pytest.mark.parametrize("duplicates", ["masked", "zero_logit"])
def test_pretraining_equals_the_equations(duplicates):
    """Nothing is dropped, so that a row's augmented copy is the row itself; rows 0 and 2 share their target."""
    settings = {"drop_ratio": 0.0, "sequence_weight": 0.25, "duplicates": duplicates}
    system = small("unisrec", pretraining=True, perturbed=0.3, **settings).eval()
    tables = system.item_tables()
    users, targets = system.users(tables, BATCH), BATCH.targets.tolist()
    items = tables[0][BATCH.targets]
    items = items / items.norm(dim=1, keepdim=True)
    expected = 0.0
    for weight, others in ((1.0, items), (0.25, users)):
        for b in range(4):
            terms = []
            for c in range(4):
                logit = users[b] @ others[c] / 0.07
                if b != c and targets[b] == targets[c]:
                    if duplicates == "masked":
                        continue
                    logit = logit * 0
                terms.append(logit.exp())
            own = (users[b] @ others[b] / 0.07).exp()
            expected -= weight * (own / sum(terms)).log() / 4
    torch.testing.assert_close(system.pretrain_loss(tables, BATCH), expected)


def test_augmented_rows_lose_items(monkeypatch):
    system = small("unisrec", pretraining=True)
    seen = []
    users = type(system).users

    def recorded(self, tables, rows):
        seen.append(rows)
        return users(self, tables, rows)

    monkeypatch.setattr(type(system), "users", recorded)
    for _ in range(20):
        system.pretrain_loss(system.item_tables(), BATCH)
    assert all(torch.equal(first.items, BATCH.items) for first in seen[::2])
    dropped = torch.stack([rows.lengths for rows in seen[1::2]])
    assert (dropped <= BATCH.lengths).all()
    assert (dropped < BATCH.lengths).any()


# -- texts with words left out

#: where rows have items by such texts, in a draw that is held fixed
CHOSEN = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()


def of_fewer_words(**settings):
    options = {"dropout": 0.0, "adaptor_dropout": 0.0, "word_drop_batches": 1.0, "sequence_weight": 0.25} | settings
    return small("unisrec", catalogue(fewer_words=True), pretraining=True, perturbed=0.3, **options)


def plain_loss(system, choice=CHOSEN):
    """Row by row, each item's text taken whole or not."""
    known = catalogue(fewer_words=True)
    table = system.item.adaptor(known.text)

    def user(row, length, chosen):
        texts = [(known.text_dropped if c else known.text)[i] for i, c in zip(row[:length], chosen, strict=False)]
        x = system.embed(system.item.adaptor(torch.stack(texts)))
        return F.normalize(system.encoder.last(x[None], torch.tensor([length]))[0], dim=0)

    rows_of = list(zip(BATCH.items.tolist(), BATCH.lengths.tolist(), choice.tolist(), strict=True))
    users = [user(row, n, [False] * n) for row, n, _ in rows_of]
    copies = [user(*row) for row in rows_of]
    items = [F.normalize(table[t], dim=0) for t in BATCH.targets]
    loss = 0.0
    for weight, others in ((1.0, items), (0.25, copies)):
        for b in range(4):
            kept = [c for c in range(4) if c == b or BATCH.targets[c] != BATCH.targets[b]]
            logits = torch.stack([users[b] @ others[c] / 0.07 for c in kept])
            loss -= weight * F.log_softmax(logits, 0)[kept.index(b)] / 4
    return loss


def test_rows_with_texts_that_lack_words_equal_a_plain_loop_with_its_gradients(monkeypatch):
    system = of_fewer_words().eval()  # the gate draws no noise
    monkeypatch.setattr(unisrec, "exchange_items", lambda items, _share, shift: items + shift * CHOSEN)
    results = []
    for loss in (system.pretrain_loss(system.item_tables(), BATCH), plain_loss(system)):
        system.zero_grad()
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in system.named_parameters() if n != "item.adaptor.noise"}
        results.append((loss.detach(), gradients))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert not torch.isclose(plain_loss(system, ~CHOSEN), results[0][0])  # else nothing would be compared


def test_a_share_of_the_batches_has_such_texts_for_a_share_of_the_items():
    """The others have items left out, as where there are no such texts; items without one keep their own."""
    system = of_fewer_words(word_drop_batches=0.1).train()
    tables, long = system.item_tables(), rows([[4, 5, 6, 7, 8, 9]] * 100)
    torch.manual_seed(0)
    kinds = [system.augmented(tables, long) for _ in range(1000)]
    words = [copy.items for (both, *_), copy in kinds if len(both) == 2 * 13]
    assert abs(len(words) / 1000 - 0.1) < 0.03
    assert abs((torch.stack(words) > 12).float().mean() - 0.2) < 0.01
    shorter = [copy.lengths for (both, *_), copy in kinds if len(both) == 13]
    assert abs(torch.stack(shorter).float().mean() - (1 + 5 * 0.8)) < 0.02
    system = of_fewer_words(word_drop_ratio=1.0).eval()
    (both,), copy = system.augmented(system.item_tables(), BATCH)
    assert copy.items.tolist() == [[16, 17, 18, 19], [14, 15, 0, 0], [24, 0, 0, 0], [20, 21, 22, 0]]
    vectors, fewer = both.chunk(2)
    same = torch.isclose(vectors, fewer, rtol=1e-4, atol=1e-5).all(1)
    assert same.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 12]


def test_the_items_at_hand_have_such_texts_of_their_own():
    system = of_fewer_words(word_drop_ratio=1.0).eval()
    ids = torch.tensor([2, 5, 12])
    (some,), _ = system.augmented(system.item_tables(ids), rows([[1, 2]]))
    (whole,), _ = system.augmented(system.item_tables(), rows([[1, 2]]))
    torch.testing.assert_close(some[4:], whole[13:][[0, 2, 5, 12]])


@pytest.mark.parametrize("how", ["without such features", "word_drop_batches 0"])
def test_without_such_texts_the_same_is_drawn_and_computed_as_if_there_never_were_any(how):
    """To the last bit: finished runs stand on it."""
    if how == "without such features":
        system = small("unisrec", pretraining=True, perturbed=0.3).train()
    else:
        system = small("unisrec", catalogue(fewer_words=True), pretraining=True, perturbed=0.3, word_drop_batches=0)
    assert system.text_dropped is None
    tables = system.item_tables()
    torch.manual_seed(5)
    loss, following = system.pretrain_loss(tables, BATCH), torch.rand(3)
    torch.manual_seed(5)
    items, lengths = drop_items(BATCH.items, BATCH.lengths, 0.2)
    users = system.users(tables, BATCH)
    copies = system.users(tables, type(BATCH)(items, lengths, BATCH.targets)) / 0.07
    want = unisrec.in_batch_cross_entropy(users, tables[1][BATCH.targets], BATCH.targets)
    want = want + 1e-3 * unisrec.in_batch_cross_entropy(users, copies, BATCH.targets)
    assert torch.equal(loss, want)
    assert torch.equal(following, torch.rand(3))


def test_on_a_target_there_are_no_such_texts():
    assert small("unisrec", catalogue(fewer_words=True)).text_dropped is None


# -- transfer


def test_ids_come_with_the_target_and_both_forms_share_what_was_pretrained():
    pretrained = small("unisrec", pretraining=True).state_dict()
    with_id, without = small("unisrec", catalogue(7)), small("unisrec_t", catalogue(7))
    assert with_id.state_dict().keys() - pretrained.keys() == {"ids.weight"}
    assert without.state_dict().keys() == pretrained.keys()
    config = parse_config(
        {
            "targets": ["a"],
            "sources": ["b"],
            "systems": ["unisrec_t"],
            "domains": {key: {"interactions": key, "items": f"{key}_items"} for key in "ab"},
        }
    )
    assert pretrain_key(config, "unisrec_t") == "unisrec"


def test_positions_and_encoder_stay_as_pretrained():
    system = small("unisrec")
    freeze(system)
    trained = {name.split(".")[0] for name, p in system.named_parameters() if p.requires_grad}
    assert trained == {"item", "norm", "ids"}


def test_items_without_text_do_not_blow_up_the_first_step():
    """Their vectors start at zero; a floor under the length would multiply their gradients by 1e12."""
    system = small("unisrec_t")
    system.finetune_loss(system.item_tables(), rows([[3, 12]], [12])).backward()
    largest = max(p.grad.abs().max() for p in system.parameters() if p.grad is not None)
    assert 0 < largest < 1e4


def test_it_says_once_that_no_words_are_dropped(caplog):
    with caplog.at_level(logging.INFO):
        small("unisrec", pretraining=True)
        small("unisrec")
        small("unisrec", catalogue(fewer_words=True), pretraining=True)
    assert [r.message for r in caplog.records if "words left out" in r.message] == [
        "no features of texts with words left out: every augmented row has items left out instead",
        "augmented rows: texts with words left out in 10 % of the batches",
    ]


@pytest.mark.parametrize("key", ["unisrec", "unisrec_t"])
def test_its_settings_file_builds(key):
    system = build("unisrec", read_system(key).settings, catalogue())
    assert system.item.adaptor.experts.weight.shape == (8 * 300, 10)
