import csv

import pytest
from finished_runs import COST, write_run

from mmm4rec.errors import UserError
from mmm4rec.reporting.convergence import write_convergence_table


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
    assert "| scientific | epochs to best | ours | 3.50 |" in text
    assert "| | | print | 13 |" in text
    assert "Device: an abacus." in text


def test_a_missing_run_is_named(tmp_path):
    run = write_run(tmp_path, "mmm4rec", 1, 0.1)
    with pytest.raises(UserError, match="no finished run of sasrec on scientific"):
        write_convergence_table([run], tmp_path / "table5.csv", systems=["mmm4rec", "sasrec"])
