import csv

import pytest
from finished_runs import COST, write_run

from mmm4rec.errors import UserError
from mmm4rec.reporting.ablation import TEST_COLUMNS, write_ablation_table

SYSTEMS = ["mmm4rec", "mmm4rec_scratch"]


def test_lines_of_the_table_beside_print(tmp_path):
    runs = [write_run(tmp_path, "mmm4rec", seed, value) for seed, value in ((1, 0.2), (2, 0.4))]
    runs.append(write_run(tmp_path, "mmm4rec_scratch", 1, 0.1))
    out = tmp_path / "table6.csv"
    write_ablation_table(runs, out, systems=SYSTEMS)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == 8
    assert rows[0] == {"variant": "mmm4rec", "dataset": "scientific", "metric": "recall@10", "value": "0.300000"}
    text = out.with_suffix(".md").read_text()
    assert "| (0) MMM4Rec | ours | 0.3000 ± 0.1414 |" in text
    assert "| (1) w/o Pretrained | ours | 0.1000 |" in text  # two seeds so far apart tell nothing
    assert "|  | print | 0.1348 | 0.2627 | 0.0724 | 0.1002\\* |" in text
    assert text.count("a slip of print: scientific, MMM4Rec, ndcg@50: 0.1002 is printed (cut, not rounded), the") == 1


def test_a_run_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="no finished run of mmm4rec_scratch on scientific"):
        write_ablation_table([write_run(tmp_path, "mmm4rec", 1, 0.2)], tmp_path / "t.csv", systems=SYSTEMS)


def test_lines_keep_their_numbers_where_others_are_left_out(tmp_path):
    write_ablation_table(
        [write_run(tmp_path, "mmm4rec_notime", 1, 0.2)], tmp_path / "t.csv", systems=["mmm4rec_notime"]
    )
    assert "| (2) w/o Time | ours |" in (tmp_path / "t.md").read_text()


def test_other_users_have_no_print(tmp_path, monkeypatch):
    monkeypatch.setitem(COST, "users", 3)
    write_ablation_table([write_run(tmp_path, "mmm4rec", 1, 0.2)], tmp_path / "table6.csv", systems=SYSTEMS[:1])
    assert "print" not in (tmp_path / "table6.md").read_text()


def test_variants_are_tested_against_the_whole_user_by_user(tmp_path):
    """Half of the users are lost without pre-training, beyond chance; of without time two users differ, within it."""
    values = {"mmm4rec": 0.5, "mmm4rec_scratch": 0.1, "mmm4rec_notime": 0.48}
    runs = [write_run(tmp_path, system, 1, value) for system, value in values.items()]
    out = tmp_path / "table6.csv"
    write_ablation_table(runs, out, systems=list(values))
    tests = list(csv.DictReader((tmp_path / "table6_tests.csv").read_text().splitlines()))
    assert tuple(tests[0]) == TEST_COLUMNS
    assert len(tests) == 2 * 4
    found = {(t["system"], t["metric"]): t for t in tests}
    scratch, notime = found["mmm4rec_scratch", "recall@10"], found["mmm4rec_notime", "recall@10"]
    assert (scratch["other"], float(scratch["difference"])) == ("mmm4rec", -0.4)
    assert float(scratch["p_holm"]) < 0.001
    assert float(notime["difference"]) == pytest.approx(-0.02)
    assert float(notime["p"]) == pytest.approx(0.5, abs=0.05)  # two users of one sign: as often as not
    text = out.with_suffix(".md").read_text()
    assert "| (1) w/o Pretrained | ours | 0.1000(†) |" in text
    assert "| (2) w/o Time | ours | 0.4800 |" in text
    assert "(†): differs from MMM4Rec beyond what other users would change" in text
    assert "after Holm's correction for 8 comparisons" in text
