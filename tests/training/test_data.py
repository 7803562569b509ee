import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmm4rec.errors import UserError
from mmm4rec.training.data import Events, load_catalogue, load_events, read_attributes

DAY = 86_400


def of(sequences):
    """Events without files."""
    lengths = torch.tensor([len(s) for s in sequences])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    items = torch.tensor([i for s in sequences for i in s])
    first = offsets[:-1].repeat_interleave(lengths)
    users = torch.arange(1, len(sequences) + 1)
    return Events(items, None, None, first, offsets, users, int(items.max()))


def test_leave_one_out_by_hand():
    events = of([[1, 2, 3, 4, 5], [6, 7, 8], [9, 10]])
    assert events.items[events.test_rows()].tolist() == [5, 8]
    assert events.items[events.valid_rows()].tolist() == [4, 7]
    # user 1 trains on 2 and 3; user 2 has nothing left; user 3 is too short to be ranked and trains on 10
    assert events.items[events.train_rows()].tolist() == [2, 3, 10]
    assert events.items[events.all_rows()].tolist() == [2, 3, 4, 5, 7, 8, 10]
    assert events.popularity().tolist() == [0, 1, 1, 1, 0, 0, 1, 0, 0, 1, 1]


def test_batch_by_hand():
    events = of([[1, 2, 3, 4, 5], [6, 7, 8]])
    rows = events.batch(torch.tensor([4, 6, 1]), max_length=3)
    assert rows.items.tolist() == [[2, 3, 4], [6, 0, 0], [1, 0, 0]]
    assert rows.lengths.tolist() == [3, 1, 1]
    assert rows.targets.tolist() == [5, 7, 2]
    assert rows.times is None


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=12), min_size=1, max_size=6).filter(
        lambda x: any(len(s) >= 2 for s in x)
    ),
    st.integers(1, 8),
)
def test_batches_equal_copied_prefixes(sequences, max_length):
    events = of(sequences)
    copies = [(s[max(0, end - max_length) : end], s[end]) for s in sequences for end in range(1, len(s))]
    rows = events.batch(events.all_rows(), max_length)
    got = [
        (row[:n].tolist(), t)
        for row, n, t in zip(rows.items, rows.lengths.tolist(), rows.targets.tolist(), strict=True)
    ]
    assert got == copies
    assert all((row[n:] == 0).all() for row, n in zip(rows.items, rows.lengths.tolist(), strict=True))


def test_held_out_items_never_train():
    sequences = [[1, 2, 3, 4], [5, 6, 7]]
    events = of(sequences)
    rows = events.batch(events.train_rows(), 10)
    assert not {3, 4, 6, 7} & (set(rows.items.flatten().tolist()) | set(rows.targets.tolist()))


@pytest.fixture
def timed(make_domain):
    return load_events([make_domain([[1, 2, 3, 4], [2, 1, 3]], [[10, 20, 30, 40], [DAY, None, 3 * DAY]])])


def test_the_targets_time_is_not_in_the_row(timed):
    rows = timed.batch(torch.tensor([3]), 5, time=True)
    assert rows.times.tolist() == [[10, 20, 30, 0, 0]]
    assert rows.has_time.tolist() == [True]


def test_the_released_rows_hold_the_targets_time(timed):
    rows = timed.batch(torch.tensor([3]), 5, time=True, target_time=True)
    assert rows.times.tolist() == [[10, 20, 30, 40, 0]]
    # a full row has no padded position to leak into
    assert timed.batch(torch.tensor([3]), 3, time=True, target_time=True).times.tolist() == [[10, 20, 30]]


def test_rows_with_an_unknown_time_say_so(timed):
    rows = timed.batch(torch.tensor([5, 6]), 4, time=True)
    assert rows.has_time.tolist() == [True, False]


def test_merged_domains_share_neither_users_nor_items(make_domain):
    one = make_domain([[1, 2, 3], [3, 1]], name="one")
    two = make_domain([[2, 1], [1, 2, 2]], [[1, 2], [3, 4, 5]], name="two")
    events = load_events([one, two])
    assert events.n_items == 5
    assert events.items.tolist() == [1, 2, 3, 3, 1, 5, 4, 4, 5, 5]
    assert events.users.tolist() == [1, 2, 3, 4]
    assert events.offsets.tolist() == [0, 3, 5, 7, 10]
    assert events.timed.tolist() == [False] * 5 + [True] * 5


BRANDS = ["Bic", None, "Pens", "Bic", None, None]
CATEGORIES = [["Office", "Pens"], ["Pens", "Office", "Pens"], None, [], [], None]


def test_attributes_are_brands_and_categories(make_domain):
    domain = make_domain([[1, 2, 3, 4, 5, 6]], brands=BRANDS, categories=CATEGORIES)
    # 1: the brand Bic, 2: Office, 3: the category Pens, 4: the brand Pens
    rows = [[0, 0, 0], [1, 2, 3], [3, 2, 0], [4, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert read_attributes([domain]).tolist() == rows
    other = make_domain([[1, 2]], name="other", brands=["Uni", "Bic"], categories=[["Pens"], None])
    assert read_attributes([domain, other]).tolist() == [*rows, [5, 3, 0], [1, 0, 0]]


def test_a_domain_without_brands_and_categories_has_no_attributes(make_domain):
    domain = make_domain([[1, 2]], categories=[[], None])
    assert read_attributes([domain]) is None
    items = pq.read_table(domain / "items.parquet").select(["item_id", "item"])
    pq.write_table(items, domain / "items.parquet")
    assert read_attributes([domain]) is None


def test_attributes_are_read_by_those_who_ask_for_them(make_domain, monkeypatch):
    domain = make_domain([[1, 2, 3, 4, 5, 6]], brands=BRANDS, categories=CATEGORIES)
    events = load_events([domain])
    assert load_catalogue(events, [domain], [], ["ids", "attributes"], "zero").attributes.shape == (7, 3)
    monkeypatch.setattr("mmm4rec.training.data.read_attributes", lambda _: pytest.fail("read for nothing"))
    assert load_catalogue(events, [domain], [], ["ids", "time"], "zero").attributes is None


def test_not_a_domain(tmp_path):
    with pytest.raises(UserError, match="not a prepared domain"):
        load_events([tmp_path])


def test_times_survive_as_whole_seconds(make_domain):
    stamps = [1_393_372_800, 1_393_372_801]
    events = load_events([make_domain([[1, 2]], [stamps], name="seconds")])
    assert events.times.tolist() == stamps
    assert events.times.dtype == torch.int64
    assert np.isin(events.items.numpy(), [1, 2]).all()
