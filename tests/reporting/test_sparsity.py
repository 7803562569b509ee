import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_runs import write_ranks, write_run

from mmm4rec.errors import UserError
from mmm4rec.reporting.accuracy import write_accuracy_table
from mmm4rec.reporting.comparison import DAGGER
from mmm4rec.reporting.sparsity import (
    COLUMNS,
    FEW_MARK,
    TEST_COLUMNS,
    Bin,
    bins_of,
    same_users,
    write_sparsity_table,
)
from mmm4rec.training.data import load_events

#: the third of two events is not ranked and trains whole; the others hold out two events each.
#: Training events: item 1 four (1, 1 1, 1), item 2 eight (2, 2, 2, 2 2 2 2 2), item 3 one, item 4 none
SEQUENCES = [[1, 2, 3], [1, 1, 2, 1, 3], [3, 2], [2, 1, 4, 1], [2, 2, 2, 2, 2, 2, 4]]
RANKED = [1, 2, 4, 5]  # test items 3, 3, 1, 4; 2, 4, 3 and 6 events before them


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def members(bins) -> dict[tuple[str, str], list[bool]]:
    return {(each.group, each.name): each.members.tolist() for each in bins}


def write_features(path: Path, has_image, has_text) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"has_image": has_image, "has_text": has_text}), path)
    return path


@pytest.fixture
def domain(make_domain):
    return make_domain(SEQUENCES, name="scientific")


@pytest.fixture
def run(tmp_path):
    def write(system, ranks, seed=1, users=RANKED):
        return write_ranks(write_run(tmp_path / "runs", system, seed, 0.0), users, ranks)

    return write


@pytest.fixture
def table(tmp_path, domain):
    def write(runs, systems, features=None):
        out = tmp_path / "tables" / "sparsity.csv"
        write_sparsity_table(
            runs, {"scientific": domain}, {"scientific": features} if features else {}, out, systems=systems
        )
        return out

    return write


def test_bins_by_hand(domain, tmp_path):
    features = write_features(tmp_path / "f.parquet", [True, True, False, True], [True, False, True, True])
    assert members(bins_of(load_events([domain]), features)) == {
        ("all", "all"): [True, True, True, True],
        ("popularity", "unseen"): [False, False, False, True],
        ("popularity", "1-5"): [True, True, True, False],
        ("history", "2-3"): [True, False, True, False],
        ("history", "4-5"): [False, True, False, False],
        ("history", "6-10"): [False, False, False, True],
        ("image", "present"): [False, False, True, True],
        ("image", "missing"): [True, True, False, False],
    }  # item 2 alone has no text, and it is nobody's test item


@pytest.mark.parametrize(("events", "name"), [(1, "1-5"), (5, "1-5"), (6, "6-20"), (20, "6-20"), (21, "21+")])
def test_borders_of_popularity(make_domain, events, name):
    """A user a training event of item 3, and two who are ranked, with items 3 and 4."""
    bins = bins_of(load_events([make_domain([[1, 2, 3], [1, 2, 4], *[[3]] * events])]), None)
    assert members(bins)["popularity", name] == [True, False]


@pytest.mark.parametrize(("length", "name"), [(3, "2-3"), (5, "4-5"), (10, "6-10"), (11, "11+"), (40, "11+")])
def test_borders_of_history(make_domain, length, name):
    other = 2 if length > 5 else 6
    bins = bins_of(load_events([make_domain([[1] * length + [2], [1] * other + [2]])]), None)
    assert members(bins)["history", name] == [True, False]


def test_a_domain_without_images_and_one_without_features(domain, tmp_path):
    features = write_features(tmp_path / "f.parquet", [False] * 4, [True, True, True, False])
    groups = {group for group, _ in members(bins_of(load_events([domain]), features))}
    assert groups == {"all", "popularity", "history", "text"}
    groups = {group for group, _ in members(bins_of(load_events([domain]), None))}
    assert groups == {"all", "popularity", "history"}


def test_one_bin_of_each_group_is_everybody(make_domain):
    bins = bins_of(load_events([make_domain([[1, 2, 3], [1, 2, 3]])]), None)
    assert members(bins) == {("all", "all"): [True, True]}


def test_means_over_users_and_seeds_by_hand(run, table):
    runs = [run("sasrec", [1, 11, 3, 60], seed=1), run("sasrec", [1, 1, 51, 60], seed=2), run("pop", [60, 60, 2, 10])]
    out = table(runs, ["pop", "sasrec"])
    rows = read(out)
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 6 * 2 * 4  # all, two bins of popularity, three of history
    found = {(r["bin"], r["system"], r["metric"]): (int(r["users"]), float(r["value"])) for r in rows}
    assert found["all", "sasrec", "recall@10"] == (4, 0.5)  # 2/4 and 2/4
    assert found["1-5", "sasrec", "recall@10"] == (3, pytest.approx(2 / 3, abs=1e-6))
    assert found["1-5", "sasrec", "recall@50"] == (3, pytest.approx((3 / 3 + 2 / 3) / 2, abs=1e-6))
    assert found["2-3", "sasrec", "ndcg@10"] == (2, pytest.approx(((1 + 0.5) / 2 + 1 / 2) / 2, abs=1e-6))
    assert found["unseen", "pop", "ndcg@50"] == (1, pytest.approx(1 / np.log2(11), abs=1e-6))
    assert found["unseen", "sasrec", "recall@50"] == (1, 0.0)


def test_everybody_is_table_ii(run, table, tmp_path):
    rng = np.random.default_rng(3)
    systems = ["pop", "sasrec", "mmm4rec"]
    runs = [run(system, rng.integers(1, 80, 4), seed=seed) for system in systems for seed in (1, 2, 3)]
    everybody = {(r["metric"], r["system"]): r["value"] for r in read(table(runs, systems)) if r["group"] == "all"}
    write_accuracy_table(2, runs, tmp_path / "table2.csv", systems=systems)
    wide = read(tmp_path / "table2.csv")
    assert everybody == {(row["metric"], system): row[system] for row in wide for system in systems}
    assert len(everybody) == 12


def test_ours_against_the_best_other_system_of_each_bin(run, table):
    """SASRec is best among the users of popular items, Popularity with the last user."""
    runs = [run("pop", [60, 60, 60, 1]), run("sasrec", [1, 1, 60, 60]), run("mmm4rec", [1, 1, 1, 2])]
    runs.append(run("mmm4rec_noid", [1, 1, 1, 1]))  # no other system
    out = table(runs, ["pop", "sasrec", "mmm4rec", "mmm4rec_noid"])
    tests = read(out.with_name("sparsity_tests.csv"))
    assert tuple(tests[0]) == TEST_COLUMNS
    assert len(tests) == 6 * 4
    found = {(t["bin"], t["metric"]): t for t in tests}
    popular, cold = found["1-5", "recall@10"], found["unseen", "ndcg@10"]
    assert (popular["system"], popular["other"], popular["users"]) == ("mmm4rec", "sasrec", "3")
    assert float(popular["difference"]) == pytest.approx(1 / 3, abs=1e-5)
    assert cold["other"] == "pop"
    assert float(cold["difference"]) == pytest.approx(1 / np.log2(3) - 1, abs=1e-5)
    assert {float(t["p_holm"]) for t in tests} == {1.0}  # one or two users who differ say nothing
    text = out.with_suffix(".md").read_text()
    cells = "+0.5000 | +0.0000 | +0.3333 | +0.5000 | +0.0000 | +0.0000"
    assert f"| MMM4Rec less the best other | {cells} |" in text
    assert "correction for 24 comparisons" in text


def test_clear_differences_are_marked_and_corrected_for_all_bins(make_domain, tmp_path):
    """Forty users with item 3, which nobody else has, and forty with item 4; histories are all alike."""
    domain = make_domain([[1, 2, 3]] * 40 + [[1, 2, 4]] * 40 + [[4]], name="shop")
    users = range(1, 81)
    mine, sasrec = (write_run(tmp_path, system, 1, 0.0, dataset="shop") for system in ("mmm4rec", "sasrec"))
    write_ranks(mine, users, [1] * 40 + [99] * 40)
    write_ranks(sasrec, users, [99] * 80)
    out = tmp_path / "sparsity.csv"
    write_sparsity_table([sasrec, mine], {"shop": domain}, {}, out, systems=["sasrec", "mmm4rec"])
    tests = {(t["bin"], t["metric"]): t for t in read(tmp_path / "sparsity_tests.csv")}
    smallest = 1 / 10_001
    assert len(tests) == 12
    assert float(tests["unseen", "recall@10"]["p"]) == pytest.approx(smallest, rel=1e-4)
    assert float(tests["unseen", "recall@10"]["p_holm"]) == pytest.approx(12 * smallest, rel=1e-4)
    assert float(tests["1-5", "recall@10"]["p_holm"]) == 1.0
    line = next(line for line in out.with_suffix(".md").read_text().splitlines() if line.startswith("| MMM4Rec less"))
    assert line == f"| MMM4Rec less the best other | +0.5000({DAGGER}) | +1.0000({DAGGER}) | +0.0000 |"


def test_bins_of_the_same_users_are_named_as_such():
    ones = np.array([True, False, False])
    bins = [Bin("popularity", "unseen", ones), Bin("text", "missing", ones.copy()), Bin("text", "present", ~ones)]
    assert same_users(bins) == ["popularity unseen and text missing are the same users."]


def test_small_bins_are_marked(run, table):
    text = table([run("pop", [1, 2, 3, 4])], ["pop"]).with_suffix(".md").read_text()
    assert f"| users | 4{FEW_MARK} | 1{FEW_MARK} | 3{FEW_MARK} |" in text


def test_one_system_is_compared_with_nobody(run, table):
    out = table([run("mmm4rec", [1, 2, 3, 4])], ["mmm4rec"])
    assert read(out.with_name("sparsity_tests.csv")) == []
    assert "best other" not in out.with_suffix(".md").read_text()
    assert len(read(out)) == 6 * 4


def test_a_leak_is_said_here_too(tmp_path, table):
    leaks = write_run(tmp_path / "runs", "mmm4rec", 1, 0.0, settings={"target_time_in_row": True})
    out = table([write_ranks(leaks, RANKED, [1, 2, 3, 4])], ["mmm4rec"])
    assert "The time of the target is in the rows of MMM4Rec" in out.with_suffix(".md").read_text()


def test_files_that_do_not_belong_together(run, table, tmp_path):
    with pytest.raises(UserError, match="no finished run of pop on scientific"):
        table([run("sasrec", [1, 2, 3, 4])], ["pop", "sasrec"])
    others = run("sasrec", [1, 2, 3, 4], users=[1, 2, 3, 5])
    with pytest.raises(UserError, match="sasrec with seed 1 ranks other users than scientific has now; run it again"):
        table([others], ["sasrec"])
    features = write_features(tmp_path / "f.parquet", [True] * 5, [True] * 5)
    with pytest.raises(UserError, match="features for 5 items, the domain has 4; rebuild them"):
        table([run("sasrec", [1, 2, 3, 4])], ["sasrec"], features)
    assert not (tmp_path / "tables").exists()
