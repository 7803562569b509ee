import json
import math

import pyarrow.parquet as pq
import pytest
from finished_runs import write_run

from mmm4rec.errors import UserError
from mmm4rec.evaluation.metrics import summarise
from mmm4rec.io import write_json, write_text
from mmm4rec.reporting.freeze import freeze


@pytest.fixture
def results(tmp_path):
    root = tmp_path / "results"
    environment = {"device": "an abacus", "platform": "wood", "packages": {"torch": "2"}, "commit": "c0ffee"}
    for seed in (1, 2):
        run = write_run(root / "runs", "sasrec", seed, 0.2)
        write_json(run / "environment.json", environment | {"seed": seed})
        (run / "model.safetensors").write_bytes(b"large")
    write_text(root / "tables" / "table2.csv", "dataset\n")
    cut = write_run(root / "truncation", "sasrec", 1, 0.2, "kindle")
    write_json(cut / "environment.json", environment | {"seed": 1})
    write_text(root / "figures" / "fig4" / "scientific.csv", "dataset\n")
    write_text(root / "figures" / "fig4" / "scientific.png", "picture")
    write_text(root / "tables" / "table2" / "scientific.md", "# Table II\n")
    return root


def test_tables_runs_and_where_they_come_from(results, tmp_path):
    out = tmp_path / "published" / "mine"
    freeze(results, {"seeds": [1, 2]}, out)
    assert (out / "tables/table2.csv").read_text() == "dataset\n"
    assert (out / "tables/table2/scientific.md").exists()
    assert list(out.rglob("*.safetensors")) == []
    assert sorted(path.name for path in (out / "figures/fig4").iterdir()) == ["scientific.csv", "scientific.png"]
    assert (out / "truncation/kindle/sasrec/1/ranks.parquet").exists()
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["seeds"] == [1, 2]
    assert provenance["devices"] == ["an abacus"]
    assert provenance["commits_of_runs"] == ["c0ffee"]
    assert provenance["packages"] == {"torch": ["2"]}
    assert provenance["config"] == {"seeds": [1, 2]}


def test_any_metric_can_be_computed_again(results, tmp_path):
    freeze(results, {}, tmp_path / "out")
    ranks = pq.read_table(tmp_path / "out/runs/scientific/sasrec/1/ranks.parquet")["rank"].to_numpy()
    assert math.isclose(summarise(ranks)["recall@10"], 0.2)


def test_what_was_frozen_before_is_replaced(results, tmp_path):
    write_text(tmp_path / "out" / "tables" / "table9.csv", "old")
    freeze(results, {}, tmp_path / "out")
    assert not (tmp_path / "out/tables/table9.csv").exists()


def test_the_configuration_decides_its_hash(results, tmp_path):
    hashes = []
    for i, config in enumerate([{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}]):
        freeze(results, config, tmp_path / str(i))
        hashes.append(json.loads((tmp_path / str(i) / "provenance.json").read_text())["config_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_nothing_to_freeze(tmp_path):
    with pytest.raises(UserError, match="no table to freeze; run the workflow first"):
        freeze(tmp_path, {}, tmp_path / "out")
