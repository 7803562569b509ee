import logging

import pytest
import torch
from small_systems import catalogue, rows, small

from mmm4rec.config import parse_config, pretrain_key, read_system
from mmm4rec.models.base import build
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
    assert [r.message for r in caplog.records if "words left out" in r.message] == [
        "no features of texts with words left out: every augmented row has items left out instead"
    ]


@pytest.mark.parametrize("key", ["unisrec", "unisrec_t"])
def test_its_settings_file_builds(key):
    system = build("unisrec", read_system(key).settings, catalogue())
    assert system.item.adaptor.experts.weight.shape == (8 * 300, 10)
