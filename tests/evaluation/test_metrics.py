import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmm4rec.evaluation import metrics


def test_docstrings():
    assert doctest.testmod(metrics).failed == 0


def test_hand_computed_fractions():
    ranks = [1, 2, 10, 11, 51]
    assert metrics.summarise(ranks) == pytest.approx(
        {
            "recall@10": 3 / 5,
            "recall@50": 4 / 5,
            "ndcg@10": (1 + 1 / math.log2(3) + 1 / math.log2(11)) / 5,
            "ndcg@50": (1 + 1 / math.log2(3) + 1 / math.log2(11) + 1 / math.log2(12)) / 5,
        }
    )


@given(st.lists(st.integers(1, 100), min_size=1, max_size=50))
def test_bounds_and_order(ranks):
    value = metrics.summarise(ranks)
    assert 0 <= value["ndcg@10"] <= value["recall@10"] <= value["recall@50"] <= 1
    assert value["ndcg@10"] <= value["ndcg@50"] <= value["recall@50"]


def test_rank_zero_is_a_programming_error():
    with pytest.raises(AssertionError, match="count from 1"):
        metrics.per_user("recall@10", np.array([0, 1]))
