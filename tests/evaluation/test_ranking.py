import pytest
import torch
from torch import Tensor

from mmm4rec.evaluation import ranking
from mmm4rec.evaluation.ranking import rank_targets
from mmm4rec.models.base import Catalogue, Settings, System
from mmm4rec.nn import blockwise
from mmm4rec.training.data import load_events


class Table(System):
    """Scores every item by a fixed number, the same for all users."""

    def __init__(self, values, max_length=3):
        super().__init__(Settings(max_length=max_length), Catalogue(n_items=len(values)))
        self.values = torch.tensor([0.0, *values])[:, None]
        self.extra = None

    def item_tables(self, ids: Tensor | None = None):
        return (self.values,)

    def encode(self, tables, rows):
        return torch.ones(len(rows.lengths), 1)

    def extra_candidates(self, tables):
        return self.extra


@pytest.fixture
def events(make_domain):
    return load_events([make_domain([[1, 2, 3], [4, 4, 2, 1], [1, 5]])])


def test_ranks_by_hand(events):
    # scores by item: 1: .5, 2: .9, 3: .1, 4: .9, 5: .3; targets are item 3 of user 1 and item 1 of user 2
    ranks = rank_targets(Table([0.5, 0.9, 0.1, 0.9, 0.3]), events, events.test_rows())
    assert ranks.tolist() == [5, 3]


def test_ties_count_against_the_target(events):
    assert rank_targets(Table([1.0] * 5), events, events.test_rows()).tolist() == [5, 5]


def test_seen_items_are_candidates_unless_masked(events):
    system = Table([0.5, 0.9, 0.1, 0.9, 0.3])
    # user 1 saw 1 and 2: left are 3 (target), 4, 5; user 2 saw 4, 4, 2: left are 1 (target), 3, 5
    assert rank_targets(system, events, events.test_rows(), mask_seen=True).tolist() == [3, 1]


def test_a_repeated_target_stays_a_candidate(make_domain):
    events = load_events([make_domain([[1, 2, 1]], name="repeat")])
    assert rank_targets(Table([0.1, 0.9]), events, events.test_rows(), mask_seen=True).tolist() == [1]


def test_extra_candidates_compete(events):
    system = Table([0.5, 0.9, 0.1, 0.9, 0.3])
    system.extra = torch.tensor([[0.2]])
    assert rank_targets(system, events, events.test_rows()).tolist() == [6, 3]


def test_nan_is_an_error(events):
    with pytest.raises(FloatingPointError, match="NaN"):
        rank_targets(Table([0.5, float("nan"), 0.1, 0.9, 0.3]), events, events.test_rows())


@pytest.mark.parametrize("register", [1, 4])
def test_chunks_change_nothing(make_domain, monkeypatch, register):
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(1, 30, (n,), generator=generator).tolist() for n in range(3, 40)]
    events = load_events([make_domain(sequences, name="many")])
    system = Table(torch.rand(events.n_items, generator=generator).tolist())
    whole = rank_targets(system, events, events.test_rows())
    masked = rank_targets(system, events, events.test_rows(), mask_seen=True)
    assert (masked <= whole).all()
    assert not torch.equal(masked, whole)
    monkeypatch.setattr(ranking, "ROWS_AT_ONCE", 17)
    monkeypatch.setitem(ranking.USERS_AT_ONCE, "cpu", 5)
    monkeypatch.setitem(ranking.ITEMS_AT_ONCE, "cpu", 7)
    monkeypatch.setattr(blockwise, "REGISTER", register)
    widths, scores = set(), system.scores
    system.scores = lambda tables, users: widths.add(len(tables[0]) - 1) or scores(tables, users)
    assert torch.equal(rank_targets(system, events, events.test_rows()), whole)
    assert torch.equal(rank_targets(system, events, events.test_rows(), mask_seen=True), masked)
    assert widths == {{1: 6, 4: 8}[register]}  # of 29 items in 5 blocks
    by_sort = [
        1 + sum(bool(s >= system.values[t]) for i, s in enumerate(system.values[1:], 1) if i != t)
        for t in events.items[events.test_rows()].tolist()
    ]
    assert whole.tolist() == by_sort


class Alike(System):
    """All items have the same vector, users any."""

    def __init__(self, n_items, width=64):
        super().__init__(Settings(max_length=3), Catalogue(n_items=n_items))
        self.vector = torch.randn(width)

    def item_tables(self, ids: Tensor | None = None):
        return (self.vector.repeat(self.n_items + 1, 1),)

    def encode(self, tables, rows):
        return torch.randn(len(rows.lengths), len(self.vector))


@pytest.mark.parametrize("n_users", [1, 3, 600])
def test_equal_items_tie_in_whatever_block_they_are(make_domain, n_users):
    torch.manual_seed(0)
    n_items = 2 * ranking.ITEMS_AT_ONCE["cpu"] + 1
    sequences = torch.randint(1, n_items + 1, (n_users, 3)).tolist()
    sequences[0][0] = n_items
    events = load_events([make_domain(sequences, name="alike")])
    assert rank_targets(Alike(n_items), events, events.test_rows()).tolist() == [n_items] * n_users
