import csv
import doctest

import pytest
from finished_runs import COST, write_run

from mmm4rec.errors import UserError
from mmm4rec.reporting import convergence
from mmm4rec.reporting.convergence import write_convergence_table


def test_docstrings():
    assert doctest.testmod(convergence).failed == 0


def test_means_over_the_seeds_beside_print(tmp_path, monkeypatch):
    runs = [write_run(tmp_path, "mmm4rec", 1, 0.1)]
    monkeypatch.setitem(COST, "best_epoch", 5)
    monkeypatch.setitem(COST, "seconds_to_best", 11.0)
    runs.append(write_run(tmp_path, "mmm4rec", 2, 0.1))
    out = tmp_path / "table5.csv"
    write_convergence_table(runs, out, systems=["mmm4rec"])
    assert list(csv.DictReader(out.read_text().splitlines())) == [
        {"dataset": "scientific", "quantity": "epochs_to_best", "mmm4rec": "3.50"},
        {"dataset": "scientific", "quantity": "seconds_per_epoch", "mmm4rec": "3.00"},
        {"dataset": "scientific", "quantity": "seconds_to_best", "mmm4rec": "9.50"},
    ]
    text = out.with_suffix(".md").read_text()
    assert "| epochs to best | ours | 3.50 ± 2.12 |\n|  | print | 13 |" in text
    # 2 x 3.0 and 5 x 3.0; 13 x 2.07
    assert "| epochs x seconds | ours | 10.50 ± 6.36 |\n|  | print | 26.91 |" in text
    assert "Device: an abacus." in text


def test_devices_are_named_with_their_runs(tmp_path):
    runs = [write_run(tmp_path, system, 1, 0.1) for system in ("missrec", "mmm4rec")]
    (runs[0] / "environment.json").write_text('{"device": "a slide rule"}')
    write_convergence_table(runs, tmp_path / "table5.csv", systems=["missrec", "mmm4rec"])
    named = "Devices: a slide rule: MISSRec; an abacus: MMM4Rec."
    assert named in (tmp_path / "table5.md").read_text()


def test_seconds_of_different_devices_are_not_held_against_each_other(tmp_path, monkeypatch):
    monkeypatch.setitem(COST, "users", 45486)
    runs = [write_run(tmp_path, system, 1, 0.1, dataset="arts") for system in ("missrec", "mmm4rec")]
    (runs[0] / "environment.json").write_text('{"device": "a slide rule"}')
    write_convergence_table(runs, tmp_path / "table5.csv", systems=["missrec", "mmm4rec"])
    text = (tmp_path / "table5.md").read_text()
    assert "multiples of MMM4Rec's | ours" not in text
    assert "multiples of MMM4Rec's | print" in text
    assert "measured here on several devices, whose seconds cannot be compared; epochs to the best: " in text
    assert f"{COST['best_epoch']} (MISSRec), {COST['best_epoch']} (MMM4Rec)" in text


def test_a_missing_run_is_named(tmp_path):
    run = write_run(tmp_path, "mmm4rec", 1, 0.1)
    with pytest.raises(UserError, match="no finished run of sasrec on scientific"):
        write_convergence_table([run], tmp_path / "table5.csv", systems=["mmm4rec", "sasrec"])


def test_the_claim_of_print_stands_beside_what_is_measured(tmp_path, monkeypatch):
    """Print: 67 x 33.81, 166 x 25.15 and 5 x 14.92 on Arts."""
    monkeypatch.setitem(COST, "users", 45486)
    runs = []
    for system, epochs in (("mmsrec", 6), ("missrec", 9), ("mmm4rec", 4)):
        monkeypatch.setitem(COST, "best_epoch", epochs)
        runs.append(write_run(tmp_path, system, 1, 0.1, dataset="arts"))
    write_convergence_table(runs, tmp_path / "table5.csv", systems=["mmsrec", "missrec", "mmm4rec"])
    text = (tmp_path / "table5.md").read_text()
    assert "| in multiples of MMM4Rec's | ours | 1.50 | 2.25 | 1.00 |\n|  | print | 30.37 | 55.96 | 1.00 |" in text
    assert "converges 10 times as fast as MMSRec and MISSRec on Arts and Office" in text
    by_print = "- arts: 30.4 times (MMSRec), 56.0 times (MISSRec) by print's own table"
    by_logs = "(27.5 times (MMSRec), 50.6 times (MISSRec) by the authors' logs)"
    assert f"{by_print} {by_logs}; measured here 1.5 times (MMSRec), 2.2 times (MISSRec)\n" in text
    assert "| print | 33.81 | 25.15 | 14.92\\* |" in text
    assert "arts, MMM4Rec, seconds_per_epoch: 14.92 is printed, the authors' log of this run says 16.49." in text
    assert "- office" not in text


def test_the_claim_and_print_stand_only_beside_the_paper_s_users(tmp_path, monkeypatch):
    for dataset, users in (("arts", 45485), ("scientific", 8442), ("my_shop", 5)):
        monkeypatch.setitem(COST, "users", users)
        runs = [write_run(tmp_path, system, 1, 0.1, dataset=dataset) for system in ("missrec", "mmm4rec")]
        write_convergence_table(runs, tmp_path / "table5.csv", systems=["missrec", "mmm4rec"])
        text = (tmp_path / "table5.md").read_text()
        assert ("Arts and Office (epochs x seconds an epoch):\n\n- not measured here\n" in text) == (
            dataset == "scientific"
        )
        assert ("puts forward" in text) == (dataset == "scientific")
        assert ("| print |" in text) == (dataset == "scientific")
        assert "| ours | 1.00 | 1.00 |" in text


def test_nothing_to_compare_with(tmp_path, monkeypatch):
    """No MMM4Rec, or one that was best before its first epoch: no multiples of it."""
    write_convergence_table([write_run(tmp_path, "missrec", 1, 0.1)], tmp_path / "table5.csv", systems=["missrec"])
    assert "| in multiples" not in (tmp_path / "table5.md").read_text()
    monkeypatch.setitem(COST, "best_epoch", 0)
    write_convergence_table([write_run(tmp_path, "mmm4rec", 1, 0.1)], tmp_path / "table5.csv", systems=["mmm4rec"])
    assert "| in multiples" not in (tmp_path / "table5.md").read_text()


def test_the_note_says_what_print_counts(tmp_path):
    write_convergence_table([write_run(tmp_path, "mmm4rec", 1, 0.1)], tmp_path / "table5.csv", systems=["mmm4rec"])
    text = " ".join((tmp_path / "table5.md").read_text().split())
    assert "stops training, which goes on for `patience` epochs more, here and in print" in text
    assert "the authors' logs of it without ID have their best epochs between 37 and 99" in text
