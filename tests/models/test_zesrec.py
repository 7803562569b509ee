import torch
from small_systems import catalogue, rows, small

from mmm4rec.config import read_system
from mmm4rec.models.base import build
from mmm4rec.training.finetune import freeze


def test_items_are_two_linear_maps_of_their_text_with_nothing_between():
    system = small("zesrec", perturbed=0.3).eval()
    (table,) = system.item_tables()
    inner, outer = system.item.inner, system.item.outer
    for i, t in enumerate(catalogue().text):
        torch.testing.assert_close(table[i], outer.weight @ (inner.weight @ t + inner.bias) + outer.bias)


def test_nothing_is_frozen_or_positions_and_encoder_are():
    assert tuple(small("zesrec").frozen()) == ()
    system = small("zesrec", freeze_encoder=True)
    freeze(system)
    trained = {name.split(".")[0] for name, p in system.named_parameters() if p.requires_grad}
    assert trained == {"item", "norm"}


def test_scores_are_plain_products():
    system = small("zesrec", perturbed=0.3).eval()
    tables = system.item_tables()
    users = system.users(tables, rows([[3, 4], [5, 0]]))
    torch.testing.assert_close(system.scores(tables, users), users @ tables[0][1:].T)


def test_pretraining_tells_the_target_from_the_other_targets_of_the_batch():
    """The first two rows have the same target, which is no negative of itself; the loss is the mean over the rows."""
    system = small("zesrec", pretraining=True, perturbed=0.3).eval()
    batch = rows([[3, 4], [5, 0], [1, 2], [8, 6]], [7, 7, 9, 2])
    tables = system.item_tables()
    users, items, loss = system.users(tables, batch), tables[0], 0.0
    for b, target in enumerate(batch.targets):
        against = [target] + [other for other in batch.targets if other != target]
        loss -= torch.log_softmax(torch.stack([users[b] @ items[other] for other in against]), 0)[0] / 4
    torch.testing.assert_close(system.pretrain_loss(tables, batch), loss)


def test_all_that_is_pretrained_is_carried_over():
    pretrained, target = small("zesrec", pretraining=True), small("zesrec", catalogue(7))
    assert pretrained.state_dict().keys() == target.state_dict().keys()
    assert all(target.carried_over(name) for name in pretrained.state_dict())
    target.load_state_dict(pretrained.state_dict())


def test_its_settings_file_builds():
    assert build("zesrec", read_system("zesrec").settings, catalogue()).item.outer.weight.shape == (300, 300)
