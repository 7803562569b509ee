import numpy as np
import pytest
from finished_runs import write_run

from mmm4rec.reporting.accuracy import write_accuracy_table
from mmm4rec.reporting.comparison import HITS, LEVEL, against_best, correct, enough_draws, mark, paired_test


def test_the_best_of_many_others_is_not_ahead_by_being_picked():
    """All systems are equally good: no more than one comparison in twenty may find ours behind the best."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(150):
        users = {name: [rng.integers(0, 2, 400).astype(float)] for name in ["mmm4rec", *"abcdefghij"]}
        row = against_best(users, "mmm4rec", draws=500)
        correct([row])
        assert (row["others"], row["p_holm"] >= row["p"]) == (10, True)
        found.append(row["difference"] < 0 and row["p_holm"] < 0.05)
    assert np.mean(found) < 0.06


def test_what_is_ahead_of_the_best_is_ahead_of_all():
    """Nothing was picked to ours' favour, so nothing is to be corrected but the number of comparisons."""
    rows = [{"p": 0.01, "others": 3, "difference": sign} for sign in (0.1, -0.1)]
    correct(rows)
    assert [row["p_holm"] for row in rows] == pytest.approx([0.02, 0.03])


def test_draws_suffice_for_a_p_that_is_just_significant():
    """Of 20 comparisons with the best of ten: of 1 / (20 * 10 * 20) of the draws some fifty go beyond."""
    assert enough_draws(20, 10) * LEVEL / (20 * 10) == HITS
    assert enough_draws(1, 1) == 10_000


def test_luck_of_the_seeds_is_no_difference():
    """Every training shifts all users by its own luck, three times the users' chance; the systems are the same.

    By the users alone half of the comparisons are found beyond chance.
    """
    rng = np.random.default_rng(5)
    found, by_users_alone = [], []
    for _ in range(200):
        users = rng.normal(size=500)
        systems = {
            name: [users + rng.normal(size=500) + 0.2 * rng.normal() for _ in range(3)] for name in ("a", "b", "c")
        }
        found.append(paired_test(systems, "a", "b", draws=300)["p"] < 0.05)
        alone = {name: [np.mean(seeds, axis=0)] for name, seeds in systems.items()}
        by_users_alone.append(paired_test(alone, "a", "b", draws=300)["p"] < 0.05)
    assert np.mean(found) < 0.08
    assert np.mean(by_users_alone) > 0.4


def test_a_difference_beyond_seeds_and_users_is_found():
    rng = np.random.default_rng(6)
    systems = {
        name: [rng.normal(size=500) + 0.02 * rng.normal() + shift for _ in range(3)]
        for name, shift in (("a", 0.5), ("b", 0.0))
    }
    test = paired_test(systems, "a", "b", draws=10_000)
    assert test["p"] < 0.001
    assert (test["seed_df"], test["low"] > 0.2) == (4, True)


def test_only_users_can_be_told_where_nothing_has_several_seeds(tmp_path):
    """A single seed a system: in brackets. Two seeds of a third system tell how much they do: none in brackets."""
    others = [write_run(tmp_path, "sasrec", 1, 0.2), write_run(tmp_path, "mmm4rec", 1, 0.6)]
    systems = ["sasrec", "bsarec", "mmm4rec"]
    write_accuracy_table(2, [*others, write_run(tmp_path, "bsarec", 1, 0.1)], tmp_path / "t.csv", systems=systems)
    text = (tmp_path / "t.md").read_text()
    assert text.count("200.00(†) |") == 4
    bsarec = [write_run(tmp_path, "bsarec", seed, value) for seed, value in ((1, 0.1), (2, 0.11))]
    bsarec.append(write_run(tmp_path, "bsarec", 3, 0.12))
    write_accuracy_table(2, [*others, *bsarec], tmp_path / "t.csv", systems=systems)
    assert (tmp_path / "t.md").read_text().count("200.00† |") == 4


@pytest.mark.parametrize(
    ("p_holm", "degrees", "marked"), [(0.04, 2, "†"), (0.04, 0, "(†)"), (0.05, 2, ""), (0.05, 0, "")]
)
def test_marks(p_holm, degrees, marked):
    assert mark({"p_holm": p_holm, "seed_df": degrees}) == marked
