import pytest
import torch

from mmm4rec.config import StageSettings, read_system
from mmm4rec.errors import UserError
from mmm4rec.evaluation.ranking import rank_targets
from mmm4rec.models.base import Catalogue, Rows, build
from mmm4rec.training.data import load_events
from mmm4rec.training.loop import finetune_loss, train

SMALL = {"hidden_size": 16, "inner_size": 32, "layers": 2, "heads": 2, "dropout": 0.1, "max_length": 5}


@pytest.fixture
def system():
    torch.manual_seed(0)
    return build("sasrec", SMALL, Catalogue(n_items=9))


def rows(items):
    lengths = torch.tensor([sum(i > 0 for i in row) for row in items])
    return Rows(torch.tensor(items), lengths, torch.ones(len(items), dtype=torch.long))


def test_blind_to_padding_and_to_the_rest_of_the_batch(system):
    system.eval()
    tables = system.item_tables()
    alone = system.encode(tables, rows([[3, 4]]))
    padded = system.encode(tables, rows([[3, 4, 0, 0, 0], [1, 2, 3, 4, 5]]))[:1]
    torch.testing.assert_close(alone, padded)


def test_order_matters(system):
    system.eval()
    tables = system.item_tables()
    u = system.encode(tables, rows([[3, 4, 5], [4, 3, 5]]))
    assert not torch.allclose(u[0], u[1])


def test_scores_are_products_with_the_tied_table(system):
    system.eval()
    tables = system.item_tables()
    users = system.users(tables, rows([[3, 4]]))
    torch.testing.assert_close(system.scores(tables, users), users @ system.item.weight[1:].T)


def test_every_parameter_trains(system):
    r = Rows(torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([5]), torch.tensor([6]))
    system.finetune_loss(system.item_tables(), r).backward()
    assert [n for n, p in system.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_saved_and_loaded_scores_are_identical(system):
    again = build("sasrec", SMALL, Catalogue(n_items=9))
    again.load_state_dict(system.state_dict())
    system.eval(), again.eval()
    r = rows([[1, 2, 3]])
    assert torch.equal(system.users(system.item_tables(), r), again.users(again.item_tables(), r))


def test_overfits_a_toy_set(make_domain):
    cycle = [[(s + k) % 9 + 1 for k in range(6)] for s in range(9)]
    events = load_events([make_domain(cycle)])
    torch.manual_seed(0)
    system = build("sasrec", SMALL | {"dropout": 0.0}, Catalogue(events.n_items))
    stage = StageSettings(optimizer="adam", learning_rate=0.01, batch_size=16, epochs=60)
    train(
        system, events, events.all_rows(), stage, finetune_loss,
        seed=0, time_aware=False, whole_catalogue=True,
    )  # fmt: skip
    assert rank_targets(system, events, events.test_rows()).tolist() == [1] * 9


def test_wrong_settings_are_one_sentence():
    with pytest.raises(UserError, match="not a multiple of heads 3"):
        build("sasrec", SMALL | {"heads": 3}, Catalogue(n_items=9))
    with pytest.raises(UserError, match="hiden_size: unknown key"):
        build("sasrec", SMALL | {"hiden_size": 3}, Catalogue(n_items=9))


def test_its_settings_file_builds():
    assert build("sasrec", read_system("sasrec").settings, Catalogue(n_items=3)).item.weight.shape == (4, 64)
