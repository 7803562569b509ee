import torch
from small_systems import catalogue, rows, small

from mmm4rec.config import read_system
from mmm4rec.models.base import build


def test_items_are_two_linear_maps_of_their_text_with_nothing_between():
    system = small("zesrec", perturbed=0.3).eval()
    (table,) = system.item_tables()
    inner, outer = system.item.inner, system.item.outer
    for i, t in enumerate(catalogue().text):
        torch.testing.assert_close(table[i], outer.weight @ (inner.weight @ t + inner.bias) + outer.bias)


def test_scores_are_plain_products_and_nothing_is_frozen():
    system = small("zesrec", perturbed=0.3).eval()
    tables = system.item_tables()
    users = system.users(tables, rows([[3, 4], [5, 0]]))
    torch.testing.assert_close(system.scores(tables, users), users @ tables[0][1:].T)
    assert tuple(system.frozen()) == ()


def test_all_that_is_pretrained_is_carried_over():
    pretrained, target = small("zesrec", pretraining=True), small("zesrec", catalogue(7))
    assert pretrained.state_dict().keys() == target.state_dict().keys()
    assert all(target.carried_over(name) for name in pretrained.state_dict())
    target.load_state_dict(pretrained.state_dict())


def test_its_settings_file_builds():
    assert build("zesrec", read_system("zesrec").settings, catalogue()).item.outer.weight.shape == (300, 300)
