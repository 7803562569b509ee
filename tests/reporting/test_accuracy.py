import csv
import doctest
from pathlib import Path

import pytest
from finished_runs import COST, write_ranks, write_run

from mmm4rec.errors import UserError
from mmm4rec.reporting import accuracy
from mmm4rec.reporting.published import published
from mmm4rec.reporting.table1 import published_users


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_docstrings():
    assert doctest.testmod(accuracy).failed == 0


def test_means_improvement_and_print(tmp_path):
    runs = [
        write_run(tmp_path, "pop", 1, 0.02),
        write_run(tmp_path, "sasrec", 1, 0.08),
        write_run(tmp_path, "sasrec", 2, 0.10),
        write_run(tmp_path, "mmm4rec", 1, 0.12),
    ]
    out = tmp_path / "tables" / "table2.csv"
    accuracy.write_accuracy_table(2, runs, out, systems=["pop", "sasrec", "mmm4rec"])
    wide = read(out)
    assert [row["metric"] for row in wide] == ["recall@10", "recall@50", "ndcg@10", "ndcg@50"]
    assert wide[0] == {
        "dataset": "scientific",
        "metric": "recall@10",
        "pop": "0.020000",
        "sasrec": "0.090000",
        "mmm4rec": "0.120000",
        "improvement": "33.33",
    }
    long = read(out.with_name("table2_runs.csv"))
    assert len(long) == 16
    assert [row["published"] for row in long if row["system"] == "sasrec"][:4] == ["0.108", "0.2042", "0.0553", "0.076"]
    assert {row["published"] for row in long if row["system"] == "pop"} == {""}
    text = out.with_suffix(".md").read_text()
    assert "0.0900 ± 0.0141" in text
    assert "**0.1200**" in text
    assert "| | print |  | 0.1080 | 0.1348 | -0.88 |" in text  # MISSRec's 0.1360 is above it
    assert "| | print |  | 0.2042 | 0.2627 | 6.23 |" in text  # over UniSRec's 0.2473


def test_ours_is_tested_against_the_best_other_system_user_by_user(tmp_path):
    others = [("pop", 0.1), ("sasrec", 0.24), ("sasrec", 0.25), ("sasrec", 0.26)]
    runs = [write_run(tmp_path, system, seed, value) for seed, (system, value) in enumerate(others)]
    for wins, marked in ((0.6, True), (0.26, False)):
        mine = [write_run(tmp_path, "mmm4rec", seed, wins) for seed in (1, 2)]
        write_ranks(mine[1], range(100), [99] * round(100 - 100 * wins) + [1] * round(100 * wins))  # other users' hits
        accuracy.write_accuracy_table(2, [*runs, *mine], tmp_path / "t.csv", systems=["pop", "sasrec", "mmm4rec"])
        tests = read(tmp_path / "t_tests.csv")
        assert len(tests) == 4
        assert {(t["system"], t["other"]) for t in tests} == {("mmm4rec", "sasrec")}
        first = {k: float(tests[0][k]) for k in ("difference", "low", "high", "p", "p_holm")}
        assert first["difference"] == pytest.approx(wins - 0.25)
        assert first["low"] < first["difference"] < first["high"]
        assert first["p_holm"] >= first["p"]
        text = (tmp_path / "t.md").read_text()
        assert ("† |" in text) == marked  # behind the improvement
        assert ("Nothing is marked here." in text) != marked
        assert (
            "†: MMM4Rec and the best other system differ beyond what other users and other seeds would change" in text
        )
        assert "after Holm's correction for 4 comparisons" in text
        assert "Where the other is ahead, its p counts as often as there are other systems" in text
        assert (first["p_holm"] < 0.05) == marked


def test_runs_of_other_users_are_not_compared(tmp_path):
    runs = [write_run(tmp_path, system, 1, 0.2) for system in ("sasrec", "mmm4rec")]
    write_ranks(runs[1], range(100)[::-1], [1] * 20 + [99] * 80)
    with pytest.raises(UserError, match="scientific: sasrec with seed 1 and mmm4rec with seed 1 rank other users"):
        accuracy.write_accuracy_table(2, runs, tmp_path / "t.csv", systems=["sasrec", "mmm4rec"])


def test_every_value_has_its_bootstrap_interval(tmp_path):
    run = write_run(tmp_path, "sasrec", 1, 0.2)
    accuracy.write_accuracy_table(2, [run], tmp_path / "t.csv", systems=["sasrec"])
    row = read(tmp_path / "t_runs.csv")[0]
    assert float(row["low"]) == pytest.approx(0.2 - 1.96 * 0.04, abs=0.015)
    assert float(row["high"]) == pytest.approx(0.2 + 1.96 * 0.04, abs=0.015)


def test_no_improvement_is_a_dash(tmp_path):
    runs = [write_run(tmp_path, "sasrec", 1, 0.2), write_run(tmp_path, "mmm4rec", 1, 0.1)]
    accuracy.write_accuracy_table(2, runs, tmp_path / "t.csv", systems=["sasrec", "mmm4rec"])
    assert {row["improvement"] for row in read(tmp_path / "t.csv")} == {"-"}


def test_another_system_than_mmm4rec_is_compared_where_it_is_asked_for(tmp_path):
    values = {"pop": 0.1, "sasrec": 0.2, "tim4rec": 0.3, "mmm4rec": 0.4}
    runs = [write_run(tmp_path, system, 1, value) for system, value in values.items()]
    for compared, number, said in (("tim4rec", 2, "-25.00"), (None, 2, "33.33"), ("tim4rec_t", 2, "33.33")):
        accuracy.write_accuracy_table(number, runs, tmp_path / "t.csv", systems=list(values), compare=compared)
        tests = read(tmp_path / "t_tests.csv")
        system, other = ("tim4rec", "mmm4rec") if compared == "tim4rec" else ("mmm4rec", "tim4rec")
        assert {(row["system"], row["other"]) for row in tests} == {(system, other)}
        assert f"| {said}" in (tmp_path / "t.md").read_text()


def test_a_table_without_a_comparison_says_how_to_have_one(tmp_path):
    runs = [write_run(tmp_path, system, 1, 0.1) for system in ("pop", "sasrec")]
    accuracy.write_accuracy_table(2, runs, tmp_path / "t.csv", systems=["pop", "sasrec"])
    text = (tmp_path / "t.md").read_text()
    assert "Nothing is tested: MMM4Rec or another system to hold it against is no column here. `compare`" in text


def test_several_datasets_keep_their_own_columns(tmp_path):
    runs = [write_run(tmp_path, "sasrec", 1, 0.2), write_run(tmp_path, "sasrec", 1, 0.3, dataset="my_shop")]
    accuracy.write_accuracy_table(2, runs, tmp_path / "t.csv", systems=["sasrec"])
    assert [(r["dataset"], r["sasrec"]) for r in read(tmp_path / "t.csv")][::4] == [
        ("scientific", "0.200000"),
        ("my_shop", "0.300000"),
    ]


def test_a_missing_run_is_named(tmp_path):
    run = write_run(tmp_path, "sasrec", 1, 0.2)
    with pytest.raises(UserError, match="no finished run of pop on scientific"):
        accuracy.write_accuracy_table(2, [run], tmp_path / "t.csv", systems=["pop", "sasrec"])
    with pytest.raises(UserError, match="has not finished"):
        accuracy.write_accuracy_table(2, [tmp_path / "nothing"], tmp_path / "t.csv", systems=["sasrec"])
    assert not (tmp_path / "t.csv").exists()


def test_a_slip_of_print_comes_with_what_the_log_says(tmp_path):
    accuracy.write_accuracy_table(2, [write_run(tmp_path, "mmm4rec", 1, 0.2)], tmp_path / "t.csv", systems=["mmm4rec"])
    found = {row["metric"]: (row["published"], row["logged"]) for row in read(tmp_path / "t_runs.csv")}
    assert found["ndcg@50"] == ("0.1002", "0.10028")
    assert found["recall@10"] == ("0.1348", "")


def test_print_stands_beside_the_paper_s_users_only(tmp_path, monkeypatch):
    monkeypatch.setitem(COST, "users", 8441)
    run = write_run(tmp_path, "mmm4rec_noid", 1, 0.2)
    accuracy.write_accuracy_table(3, [run], tmp_path / "t.csv", systems=["mmm4rec_noid"])
    assert "print" not in (tmp_path / "t.md").read_text()
    assert {row["published"] for row in read(tmp_path / "t_runs.csv")} == {""}


def test_both_counts_of_office_are_the_paper_s(tmp_path):
    assert published_users("office") == {87436, 87346}
    assert published_users("pantry") == {13101}
    assert published_users("my_shop") == set()


def test_a_loss_is_shown_in_the_text_and_a_dash_in_the_csv(tmp_path):
    runs = [write_run(tmp_path, system, 1, value) for system, value in (("sasrec", 0.4), ("mmm4rec", 0.1))]
    accuracy.write_accuracy_table(2, runs, tmp_path / "t.csv", systems=["sasrec", "mmm4rec"])
    assert {row["improvement"] for row in read(tmp_path / "t.csv")} == {"-"}
    assert "| **0.4000** | 0.1000 | -75.00(†) |" in (tmp_path / "t.md").read_text()


@pytest.mark.parametrize(
    ("number", "dataset", "users", "cells"),
    [
        (
            2,
            "scientific",
            8442,
            {"ndcg@50": "0.1002 is printed (cut, not rounded), the authors' log of this run says 0.100280"},
        ),
        (
            2,
            "pantry",
            13101,
            {"ndcg@50": "0.0729 is printed (cut, not rounded), the authors' log of this run says 0.072967"},
        ),
        (2, "arts", 45486, {}),
        (3, "scientific", 8442, {"ndcg@50": "0.0929 is printed, the authors' log of this run says 0.094442"}),
        (3, "arts", 45486, {"recall@10": "0.1219 is printed (cut", "ndcg@10": "0.0739 is printed (cut"}),
        (3, "office", 87346, {"recall@10": "0.1252 is printed (cut"}),
    ],
)
def test_slips_of_print_are_marked_and_named(tmp_path, monkeypatch, number, dataset, users, cells):
    monkeypatch.setitem(COST, "users", users)
    system, name = {2: ("mmm4rec", "MMM4Rec"), 3: ("mmm4rec_noid", "MMM4Rec (w/o ID)")}[number]
    run = write_run(tmp_path, system, 1, 0.2, dataset=dataset)
    accuracy.write_accuracy_table(number, [run], tmp_path / "t.csv", systems=[system])
    text = (tmp_path / "t.md").read_text()
    for metric, said in cells.items():
        assert f"{said[:6]}\\*" in text
        assert f"\\* a slip of print: {dataset}, {name}, {metric}: {said}" in text
    assert text.count("a slip of print") == len(cells)
    assert text.count("\\*") == 2 * len(cells)


def test_a_slip_of_a_system_that_is_no_column_is_not_named(tmp_path):
    run = write_run(tmp_path, "sasrec", 1, 0.2)
    accuracy.write_accuracy_table(2, [run], tmp_path / "t.csv", systems=["sasrec"])
    text = (tmp_path / "t.md").read_text()
    assert "slip" not in text
    assert "Most of print's baselines are quoted from earlier papers" in text
    assert "Improvements of print are over all systems of its own table." in text


def test_the_paper_s_claim_follows_from_its_table_and_stands_beside_what_is_measured(tmp_path, monkeypatch):
    """0.0481 / 0.0365 - 1 = 31.78 %."""
    monkeypatch.setitem(COST, "users", 13101)
    others = [write_run(tmp_path, "pop", 1, 0.02, dataset="pantry"), write_run(tmp_path, "sasrec", 1, 0.10, "pantry")]
    systems = ["pop", "sasrec", "mmm4rec"]
    claim = "in ndcg@10 on pantry: +31.78 % by print's own table (over MISSRec). Measured here: "
    for value, measured in ((0.12, "+20.00 %"), (0.08, "-20.00 %")):
        runs = [*others, write_run(tmp_path, "mmm4rec", 1, value, dataset="pantry")]
        accuracy.write_accuracy_table(2, runs, tmp_path / "t.csv", systems=systems)
        assert f"{claim}{measured} (over SASRec)." in (tmp_path / "t.md").read_text()
    assert "| | print |  | 0.0218 | 0.0481 | 31.78 |" in (tmp_path / "t.md").read_text()


def test_the_claim_is_said_beside_any_print_and_nowhere_else(tmp_path, monkeypatch):
    nothing = "+31.78 % by print's own table (over MISSRec). Not measured here."
    for dataset, users, systems, said in (
        ("scientific", 8442, ("sasrec", "mmm4rec"), True),  # another domain
        ("pantry", 13101, ("mmm4rec",), True),  # nobody to compare with
        ("pantry", 13100, ("sasrec", "mmm4rec"), False),  # other users
        ("my_shop", 13101, ("sasrec", "mmm4rec"), False),
    ):
        monkeypatch.setitem(COST, "users", users)
        runs = [write_run(tmp_path, system, 1, 0.1, dataset=dataset) for system in systems]
        accuracy.write_accuracy_table(2, runs, tmp_path / "t.csv", systems=systems)
        text = (tmp_path / "t.md").read_text()
        assert (nothing in text) == said
        assert ("puts forward" in text) == said


def test_published_numbers_are_all_there():
    assert len(published(2)) == 5 * 10 * 4
    assert len(published(3)) == 5 * 9 * 4
    assert published(2)["pantry", "mmm4rec", "ndcg@10"] == 0.0481


def test_table_iv_names_the_whole_domain_and_stands_beside_its_print_if_that_is_the_papers(tmp_path):
    run = write_run(tmp_path, "mmm4rec", 1, 0.2, dataset="office_with_image")
    for paper, printed in ((["office"], {"0.1467", "0.2237", "0.108", "0.1249"}), ([], {""})):
        accuracy.write_accuracy_table(4, [run], tmp_path / "table4.csv", systems=["mmm4rec"], paper=paper)
        assert {row["dataset"] for row in read(tmp_path / "table4.csv")} == {"office"}
        assert {row["published"] for row in read(tmp_path / "table4_runs.csv")} == printed
        assert (accuracy.UNKNOWN_USERS in (tmp_path / "table4.md").read_text()) == bool(paper)
