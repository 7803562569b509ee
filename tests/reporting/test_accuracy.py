import csv
import doctest
from pathlib import Path

import pytest
from finished_runs import COST, write_run

from mmm4rec.config import read_system
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
    assert "| | print |  | 0.1080 | 0.1348 |" in text


def test_ours_is_tested_against_the_best_other_system_user_by_user(tmp_path):
    others = [("pop", 0.1), ("sasrec", 0.2), ("sasrec", 0.3)]
    runs = [write_run(tmp_path, system, seed, value) for seed, (system, value) in enumerate(others)]
    for wins, marked in ((0.5, True), (0.26, False)):
        run = write_run(tmp_path, "mmm4rec", 1, wins)
        accuracy.write_accuracy_table(2, [*runs, run], tmp_path / "t.csv", systems=["pop", "sasrec", "mmm4rec"])
        tests = read(tmp_path / "t_tests.csv")
        assert len(tests) == 4
        assert {(t["system"], t["other"]) for t in tests} == {("mmm4rec", "sasrec")}
        first = {k: float(tests[0][k]) for k in ("difference", "low", "high", "p", "p_holm")}
        assert first["difference"] == pytest.approx(wins - 0.25)
        assert first["low"] < first["difference"] < first["high"]
        assert first["p_holm"] >= first["p"]
        assert (accuracy.DAGGER in (tmp_path / "t.md").read_text()) == marked
        assert (first["p_holm"] < 0.05) == marked


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


def test_a_leak_is_said_in_the_caption(tmp_path):
    run = write_run(tmp_path, "mmm4rec", 1, 0.2, settings={"target_time_in_row": True})
    accuracy.write_accuracy_table(2, [run], tmp_path / "t.csv", systems=["mmm4rec"])
    assert "The time of the target is in the rows of mmm4rec" in (tmp_path / "t.md").read_text()


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


def test_settings_other_than_the_files_are_in_the_caption(tmp_path):
    file = read_system("sasrec")
    stage = file.finetune.model_dump() | {"epochs": 3}
    run = write_run(tmp_path, "sasrec", 1, 0.2, settings=file.settings | {"hidden_size": 32}, stage=stage)
    accuracy.write_accuracy_table(2, [run], tmp_path / "t.csv", systems=["sasrec"])
    assert "sasrec hidden_size 32 (64), epochs 3 (300)." in (tmp_path / "t.md").read_text()


def test_slips_of_print_are_marked(tmp_path):
    run = write_run(tmp_path, "mmm4rec_noid", 1, 0.2)
    accuracy.write_accuracy_table(3, [run], tmp_path / "t.csv", systems=["mmm4rec_noid"])
    text = (tmp_path / "t.md").read_text()
    assert "0.0929\\*" in text
    assert "0.0944" in text


def test_published_numbers_are_all_there():
    assert len(published(2)) == 5 * 10 * 4
    assert len(published(3)) == 5 * 9 * 4
    assert published(2)["pantry", "mmm4rec", "ndcg@10"] == 0.0481


def test_table_iv_names_the_whole_domain_and_stands_beside_its_print(tmp_path):
    run = write_run(tmp_path, "mmm4rec", 1, 0.2, dataset="office_with_image")
    accuracy.write_accuracy_table(4, [run], tmp_path / "table4.csv", systems=["mmm4rec"])
    assert {row["dataset"] for row in read(tmp_path / "table4.csv")} == {"office"}
    assert {row["published"] for row in read(tmp_path / "table4_runs.csv")} == {"0.1467", "0.2237", "0.108", "0.1249"}
