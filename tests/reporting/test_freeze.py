import json
import math
import shutil

import pyarrow.parquet as pq
import pytest
from finished_runs import write_run

from mmm4rec.config import PRETRAINING, finetune_settings, parse_config, pretrain_settings, result_settings
from mmm4rec.errors import UserError
from mmm4rec.evaluation.metrics import summarise
from mmm4rec.io import write_json, write_text
from mmm4rec.reporting.freeze import freeze

CONFIG = {
    "targets": ["scientific"],
    "systems": ["sasrec"],
    "seeds": [1, 2],
    "domains": {"scientific": {"amazon": "Industrial_and_Scientific"}},
}


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
    freeze(results, CONFIG, out)
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
    assert provenance["config"] == CONFIG


def test_any_metric_can_be_computed_again(results, tmp_path):
    freeze(results, CONFIG, tmp_path / "out")
    ranks = pq.read_table(tmp_path / "out/runs/scientific/sasrec/1/ranks.parquet")["rank"].to_numpy()
    assert math.isclose(summarise(ranks)["recall@10"], 0.2)


def test_what_was_frozen_before_is_replaced(results, tmp_path):
    write_text(tmp_path / "out" / "tables" / "table9.csv", "old")
    freeze(results, CONFIG, tmp_path / "out")
    assert not (tmp_path / "out/tables/table9.csv").exists()


def test_the_configuration_decides_its_hash(results, tmp_path):
    hashes = []
    for i, config in enumerate([CONFIG, dict(reversed(CONFIG.items())), CONFIG | {"seeds": [1]}]):
        freeze(results, config, tmp_path / str(i))
        hashes.append(json.loads((tmp_path / str(i) / "provenance.json").read_text())["config_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_runs_that_the_configuration_does_not_ask_for_are_named(results, tmp_path):
    """A seed more, and other settings; those that it asks for are not."""
    config = parse_config(CONFIG)
    wanted = {seed: finetune_settings(config, "sasrec", "scientific", seed) for seed in (1, 2, 3)}
    wanted[2]["settings"]["dropout"] = 0.9
    for seed, settings in wanted.items():
        run = write_run(results / "runs", "sasrec", f"seed_{seed}", 0.2)
        write_json(run / "config.json", settings | {"domain_path": "anywhere"})
        shutil.copy(results / "runs/scientific/sasrec/1/environment.json", run)
    for old in ("runs/scientific/sasrec/1", "runs/scientific/sasrec/2", "truncation"):
        shutil.rmtree(results / old)
    freeze(results, result_settings(config), tmp_path / "out")
    assert json.loads((tmp_path / "out/provenance.json").read_text())["not_of_config"] == [
        "runs/scientific/sasrec/seed_2",
        "runs/scientific/sasrec/seed_3",
    ]
    assert (tmp_path / "out/runs/scientific/sasrec/seed_3/ranks.parquet").exists()


def test_a_run_from_another_pre_training_is_named(results, tmp_path):
    """Table III may start from weights that the configuration would not make; settings alone do not show it."""
    domains = CONFIG["domains"] | {"food": {"amazon": "Grocery_and_Gourmet_Food"}}
    config = parse_config(CONFIG | {"systems": ["zesrec"], "sources": ["food"], "domains": domains})
    shutil.rmtree(results / "runs")
    for seed, rate in ((1, 0.001), (2, 0.003)):
        run = write_run(results / "runs", "zesrec", f"seed_{seed}", 0.2)
        start = {k: v for k, v in pretrain_settings(config, "zesrec").items() if k in PRETRAINING} | {"sha256": "c0"}
        start["stage"] = start["stage"] | {"learning_rate": rate}
        made = finetune_settings(config, "zesrec", "scientific", seed) | {"pretraining": start}
        write_json(run / "config.json", made)
        write_json(run / "environment.json", {"device": "", "platform": "", "packages": {}, "commit": "", "seed": seed})
    shutil.rmtree(results / "truncation")
    freeze(results, result_settings(config), tmp_path / "out")
    provenance = json.loads((tmp_path / "out/provenance.json").read_text())
    assert provenance["not_of_config"] == ["runs/scientific/zesrec/seed_2"]


def test_a_folder_of_other_things_is_left_alone(results, tmp_path):
    write_text(tmp_path / "out" / "thesis.tex", "mine")
    with pytest.raises(UserError, match=r"thesis\.tex is there, which is no frozen result"):
        freeze(results, CONFIG, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_runs_without_a_result_and_tables_of_other_domains_are_named(results, tmp_path):
    for name in ("table2/pantry.csv", "table2/scientific_tests.csv"):
        write_text(results / "tables" / name, "dataset\n")
    freeze(results, result_settings(parse_config(CONFIG)), tmp_path / "out")
    provenance = json.loads((tmp_path / "out/provenance.json").read_text())
    assert provenance["missing"] == ["runs/scientific/sasrec/seed_1", "runs/scientific/sasrec/seed_2"]
    assert [name for name in provenance["not_of_config"] if name.startswith("tables")] == ["tables/table2/pantry.csv"]
    assert provenance["dates_of_runs"] == ["unknown"]


def test_results_do_not_freeze_themselves_away(results, tmp_path):
    for out in (tmp_path, results, results / "tables", results / "runs" / "frozen"):
        with pytest.raises(UserError, match="results are there; name a folder of its own"):
            freeze(results, CONFIG, out)
    assert (results / "tables" / "table2.csv").exists()


def test_what_was_written_by_hand_stays(results, tmp_path):
    write_text(tmp_path / "out" / "README.md", "by hand")
    freeze(results, CONFIG, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "by hand"


def test_nothing_to_freeze(tmp_path):
    with pytest.raises(UserError, match="no table to freeze; run the workflow first"):
        freeze(tmp_path, CONFIG, tmp_path / "out")
