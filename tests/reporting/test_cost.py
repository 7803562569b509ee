import csv
import json

import pytest
from finished_runs import COST, write_run

from mmm4rec.errors import UserError
from mmm4rec.io import write_json
from mmm4rec.reporting.cost import write_cost_table


def test_means_over_the_seeds_in_the_tables_order(tmp_path, monkeypatch):
    runs = [write_run(tmp_path, "mmm4rec", 1, 0.1), write_run(tmp_path, "sasrec", 1, 0.1)]
    monkeypatch.setitem(COST, "seconds", 2000.0)
    monkeypatch.setitem(COST, "epochs", 4)
    runs.append(write_run(tmp_path, "mmm4rec", 2, 0.1))
    out = tmp_path / "cost.csv"
    write_cost_table(runs, out)
    sasrec, mmm4rec = csv.DictReader(out.read_text().splitlines())
    assert (sasrec["system"], sasrec["seeds"], sasrec["seconds"]) == ("sasrec", "1", "9.0")
    assert (mmm4rec["seeds"], mmm4rec["epochs"], mmm4rec["seconds"]) == ("2", "3.5", "1004.5")
    assert (mmm4rec["parameters"], mmm4rec["peak_memory_mib"], mmm4rec["peak_gpu_memory_mib"]) == ("10", "100", "")
    text = out.with_suffix(".md").read_text()
    assert "Device: an abacus." in text
    assert "## scientific" in text
    assert "| MMM4Rec | 2 | 10 |  | 3.5 | 2.0 | 3.00 | 1,004.5 | 8.0 | 100 |  |" in text


def test_pre_training_stands_apart(tmp_path):
    run = write_run(tmp_path, "mmm4rec", 1, 0.1)
    settings = json.loads((run / "config.json").read_text())
    settings.pop("domain")
    write_json(run / "config.json", settings)
    write_cost_table([run, write_run(tmp_path, "mmm4rec", 2, 0.1)], tmp_path / "cost.csv")
    datasets = [row["dataset"] for row in csv.DictReader((tmp_path / "cost.csv").read_text().splitlines())]
    assert datasets == ["pre-training", "scientific"]


def test_an_unfinished_run_is_named(tmp_path):
    run = write_run(tmp_path, "mmm4rec", 1, 0.1)
    (run / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"metrics\.json: no such file; this run has not finished"):
        write_cost_table([run], tmp_path / "cost.csv")


def test_devices_are_told_apart(tmp_path):
    runs = [write_run(tmp_path, system, seed, 0.1) for system, seed in (("sasrec", 1), ("sasrec", 2), ("mmm4rec", 1))]
    write_json(runs[1] / "environment.json", {"device": "a loom"})
    write_cost_table(runs, tmp_path / "cost.csv")
    devices = [row["devices"] for row in csv.DictReader((tmp_path / "cost.csv").read_text().splitlines())]
    assert devices == ["a loom; an abacus", "an abacus"]
    text = (tmp_path / "cost.md").read_text()
    assert "Devices: a loom and an abacus: SASRec; an abacus: MMM4Rec." in text
