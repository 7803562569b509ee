import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mmm4rec.data.kcore import k_core

EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40)


def kept(events, k):
    users, items = np.array(events, dtype=np.int64).reshape(-1, 2).T
    return k_core(users, items, k)


def brute_force(events, k):
    """Remove one event of a user or item that is too small at a time, until there is none."""
    left = list(range(len(events)))
    while True:
        small = [
            e for e in left if any(sum(events[other][side] == events[e][side] for other in left) < k for side in (0, 1))
        ]
        if not small:
            return left
        left.remove(small[0])


def test_a_removal_that_causes_another():
    # User 2 has one event only; without it item 1 has one event only; without that user 1 has one event only.
    events = [(0, 0), (0, 0), (1, 0), (1, 1), (2, 1)]
    assert kept(events, 2).tolist() == [True, True, False, False, False]


def test_repeated_events_count_each():
    assert kept([(0, 0)] * 3, 3).all()
    assert not kept([(0, 0)] * 3, 4).any()


@given(EVENTS, st.integers(0, 4))
def test_fixpoint_and_largest(events, k):
    mask = kept(events, k)
    assert np.flatnonzero(mask).tolist() == brute_force(events, k)
    assert kept([event for event, stays in zip(events, mask, strict=True) if stays], k).all()


@given(EVENTS, st.integers(0, 4), st.randoms(use_true_random=False))
def test_order_does_not_matter(events, k, random):
    order = list(range(len(events)))
    random.shuffle(order)
    assert kept([events[e] for e in order], k).tolist() == kept(events, k)[order].tolist()


@given(EVENTS)
def test_zero_keeps_everything(events):
    assert kept(events, 0).all()
