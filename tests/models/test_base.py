"""What is said of a system that does not keep to the interface: one that somebody adds, most likely."""

import pytest
import torch
from small_systems import catalogue, rows

from mmm4rec.models.base import Settings, System
from mmm4rec.training.data import load_events
from mmm4rec.training.loop import finetune_loss, train_step

BATCH = rows([[3, 5, 2, 0, 0, 0], [4, 5, 6, 0, 0, 0]], [7, 8])


class Mean(System):
    """The mean of the items' vectors."""

    def __init__(self):
        super().__init__(Settings(max_length=6), catalogue())
        self.item = torch.nn.Embedding(self.n_items + 1, 4)

    def item_tables(self, ids=None):
        return (self.item.weight if ids is None else self.item(torch.nn.functional.pad(ids, (1, 0))),)

    def encode(self, tables, rows):
        return tables[0][rows.items].mean(1)


def broken(**methods):
    return type("Broken", (Mean,), methods)()


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({"encode": lambda _, t, r: t[0][r.items]}, r"Broken\.users: a vector a row is \[B, D\], found \[2, 3, 4\]"),
        (
            {"encode": lambda _, t, r: t[0][r.items].mean((0, 1))[None]},
            "something of each of 2 rows is wanted, found 1",
        ),
        (
            {"encode": lambda _, t, r: t[0][r.items].mean(1)[:, :3]},
            r"Broken\.candidates: expected \[12, 3\], without the padding, for users \[2, 3\], found \[12, 4\]",
        ),
        ({"candidates": lambda _, t: t[0]}, r"expected \[12, 4\], .* found \[13, 4\]"),
    ],
)
def test_shapes_that_do_not_fit_are_told_with_their_method(methods, said):
    system = broken(**methods)
    for loss in (system.finetune_loss, system.pretrain_loss):
        with pytest.raises(AssertionError, match=said):
            loss(system.item_tables(), BATCH)
    fitting = Mean()
    assert fitting.finetune_loss(fitting.item_tables(), BATCH) > 0


def test_tables_that_are_not_of_the_items_asked_for_are_told(make_domain):
    """Else a system pre-trains on the vectors of other items, without a word."""
    events = load_events([make_domain([[1, 2, 3, 4]] * 3 + [[5, 6, 7, 12]])])
    system = broken(item_tables=lambda self, ids=None: (self.item.weight,))
    how = {"max_grad_norm": None, "time_aware": False, "whole_catalogue": False, "precision": "32-true"}
    with pytest.raises(AssertionError, match=r"Broken\.item_tables: expected tables of 5 rows, the first for the pad"):
        train_step(system, events, [events.all_rows()[:3]], torch.optim.SGD(system.parameters()), finetune_loss, **how)
