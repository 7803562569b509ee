import doctest
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmm4rec.evaluation import significance
from mmm4rec.evaluation.significance import SeedNoise, bootstrap_interval, holm, paired_p_value, seed_noise


def test_docstrings():
    assert doctest.testmod(significance).failed == 0


def test_interval_is_that_of_drawing_users_one_by_one():
    rng = np.random.default_rng(1)
    values = rng.choice([0.0, 0.5, 1.0], size=300, p=[0.7, 0.2, 0.1])
    plain = [rng.choice(values, size=300).mean() for _ in range(4000)]
    assert bootstrap_interval(values) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.006)


def test_interval_of_hits_is_the_binomial_one():
    hits = np.repeat([0.0, 1.0], [900, 100])
    low, high = bootstrap_interval(hits)
    width = 1.96 * (0.1 * 0.9 / 1000) ** 0.5
    assert (low, high) == pytest.approx((0.1 - width, 0.1 + width), abs=0.002)


def test_interval_of_many_distinct_values_is_the_normal_one():
    """Half of the users without a difference, the others' spread evenly between -1 and 1."""
    values = np.concatenate([np.zeros(1000), np.linspace(-1, 1, 1000)])
    width = 1.96 * (values.var() / len(values)) ** 0.5
    assert bootstrap_interval(values) == pytest.approx((-width, width), abs=0.001)


def test_p_value_is_that_of_all_exchanges(monkeypatch):
    monkeypatch.setattr(significance, "ENOUGH", 10**9)  # never ends early
    a, b = np.array([1.0, 0.5, 1.0, 0.0, 0.25]), np.array([0.0, 0.0, 0.5, 0.0, 0.5])
    d = a - b
    sums = [abs(np.dot(signs, d)) for signs in product([1, -1], repeat=5)]
    exact = np.mean([s >= abs(d.sum()) - 1e-12 for s in sums])
    assert exact == 0.25
    assert paired_p_value(a, b, draws=100_000) == pytest.approx(exact, abs=0.005)


def test_p_value_drawn_in_blocks_is_that_of_all_exchanges(monkeypatch):
    monkeypatch.setattr(significance, "SIGNS_AT_ONCE", 27)  # rows of three, and a last one that is not full
    assert paired_p_value(np.ones(9), np.zeros(9), draws=50_000) == pytest.approx(2 / 2**9, abs=0.001)


def test_drawing_ends_early_where_p_is_large():
    """A billion draws would take hours; the p of all exchanges is 1/4."""
    a, b = np.array([1.0, 0.5, 1.0, 0.0, 0.25]), np.array([0.0, 0.0, 0.5, 0.0, 0.5])
    early = [paired_p_value(a, b, draws=10**9, seed=seed) for seed in range(30)]
    assert np.mean(early) == pytest.approx(0.25, abs=0.01)
    assert 0 < np.std(early) < 0.02


def test_p_values_are_uniform_where_nothing_differs():
    rng = np.random.default_rng(2)
    p = [paired_p_value(*rng.random((2, 200)).round(1), draws=500, seed=i) for i in range(300)]
    assert np.mean(np.array(p) < 0.1) == pytest.approx(0.1, abs=0.05)


def test_equal_systems_and_clear_winners():
    same = np.array([0.0, 1.0, 0.5])
    assert paired_p_value(same, same) == 1.0
    assert paired_p_value(np.ones(100), np.zeros(100)) == pytest.approx(1 / 10_001)


def test_seeds_spread_is_pooled_over_the_systems_that_have_several():
    """By hand: squares about the means 2 + 8 = 10 over 1 + 2 degrees, times 1/3 + 1/2 for a difference of means."""
    noise = seed_noise([[1.0, 3.0], [5.0, 7.0, 9.0], [4.0]], 3, 2)
    assert noise.degrees == 3
    assert noise.scale == pytest.approx((10 / 3 * (1 / 3 + 1 / 2)) ** 0.5)
    assert seed_noise([[4.0], [6.0]], 1, 1) == SeedNoise(0.0, 0)


def test_without_differences_among_users_p_is_that_of_the_t_distribution():
    """All users gain the same; of t with 4 degrees 5 % lie beyond 2.776."""
    scale = 0.01
    a = np.full(100_000, 2.776 * scale)
    noise = SeedNoise(scale, 4)
    # exchanges of so many users move the mean by a hundredth of the seeds' spread
    assert paired_p_value(a, np.zeros_like(a), noise=noise, draws=4000) == pytest.approx(0.05, abs=0.012)
    low, high = bootstrap_interval(a, noise=noise)
    assert (low, high) == pytest.approx((0, 2 * 2.776 * scale), abs=0.003)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p):
    corrected = holm(p)
    assert all(p_ <= c <= 1 for p_, c in zip(p, corrected, strict=True))
    order = sorted(range(len(p)), key=p.__getitem__)
    assert all(corrected[i] <= corrected[j] for i, j in pairwise(order))
