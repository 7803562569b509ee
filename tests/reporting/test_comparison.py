import numpy as np
import pytest
from finished_runs import write_ranks, write_run

from mmm4rec.config import others, system_keys
from mmm4rec.reporting.accuracy import write_accuracy_table
from mmm4rec.reporting.comparison import HITS, LEVEL, against_best, correct, enough_draws, mark, paired_test, users_of
from mmm4rec.reporting.runs import read_run


def test_the_best_of_many_others_is_not_ahead_by_being_picked():
    """All systems are equally good: no more than one comparison in twenty may find ours behind the best."""
    rng = np.random.default_rng(0)
    found, ten = [], others(system_keys(), "mmm4rec")[:10]
    for _ in range(150):
        users = {name: [rng.integers(0, 2, 400).astype(float)] for name in ["mmm4rec", *ten]}
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


def test_a_single_seed_is_marked_in_brackets(tmp_path):
    """Nothing has several seeds; a third system tells how much seeds do; then both of the two have several."""
    systems = ["sasrec", "bsarec", "mmm4rec"]

    def text(seeds: dict[str, tuple[float, ...]]) -> str:
        runs = [write_run(tmp_path, s, seed, value) for s, values in seeds.items() for seed, value in enumerate(values)]
        write_accuracy_table(2, runs, tmp_path / "t.csv", systems=systems)
        return (tmp_path / "t.md").read_text()

    alone = text({"sasrec": (0.2,), "mmm4rec": (0.6,), "bsarec": (0.1,)})
    assert alone.count("200.00(†) |") == 4
    assert "(†): MMM4Rec and the best other system differ beyond what other users would change" in alone
    assert "no system has several seeds" in alone
    other = text({"sasrec": (0.2,), "mmm4rec": (0.6,), "bsarec": (0.1, 0.11, 0.12)})
    assert other.count("200.00(†) |") == 4
    assert "†, (†) where one of the two has a single seed: MMM4Rec and the best other system differ beyond" in other
    both = text({"sasrec": (0.19, 0.2, 0.21), "mmm4rec": (0.59, 0.6, 0.61), "bsarec": (0.1,)})
    assert both.count("200.00† |") == 4
    assert "(†)" not in both


def test_a_system_that_draws_nothing_tells_nothing_of_seeds(tmp_path):
    """Popularity ranks alike whatever its seed; others whose means happen to tie do not."""
    ranks = {"pop": ([1, 60], [1, 60]), "sasrec": ([1, 60], [60, 1]), "mmm4rec": ([1, 1],)}
    runs = []
    for system, seeds in ranks.items():
        for seed, values in enumerate(seeds):
            runs.append(read_run(write_ranks(write_run(tmp_path, system, seed, 0.0), [1, 2], values)))
    users = users_of(runs)["scientific", "recall@10"]
    assert {system: len(seeds) for system, seeds in users.items()} == {"pop": 1, "sasrec": 2, "mmm4rec": 1}
    test = paired_test(users, "mmm4rec", "sasrec", draws=100)
    assert (test["seeds"], test["seed_sd"], test["seed_df"]) == (1, 0.0, 1)


@pytest.mark.parametrize(
    ("p_holm", "seeds", "marked"), [(0.04, 2, "†"), (0.04, 1, "(†)"), (0.05, 2, ""), (0.05, 1, "")]
)
def test_marks(p_holm, seeds, marked):
    assert mark({"p_holm": p_holm, "seeds": seeds}) == marked
