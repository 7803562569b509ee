"""What there is to do, and what is done."""

import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmm4rec.config import embed_settings, parse_config
from mmm4rec.io import read_json, write_json
from mmm4rec.planning.jobs import all_jobs

SHOP = {
    "sources": ["big"],
    "targets": ["shop"],
    "systems": ["pop", "unisrec"],
    "seeds": [1],
    "table4": {"targets": []},
    "domains": {"shop": {"amazon": "Some_Shop"}, "big": {"amazon": "Some_Store"}},
}


@pytest.fixture
def config(tmp_path):
    encoder = {"folder": str(tmp_path / "encoders")}
    return parse_config(SHOP | {"results": str(tmp_path / "r"), "raw": str(tmp_path / "raw"), "encoder": encoder})


def states(config):
    """{(rule, domain or system): state} of what is not done."""
    return {(j.rule, j.domain or j.system): j.state for j in all_jobs(config) if j.state != "done"}


def finish(config):
    """Every file of every job, as far as the plan looks into it."""
    for job in all_jobs(config):
        for path in job.outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if job.settings:
            write_json(job.outputs[0].with_name("config.json"), job.settings | {"time": "off", "domain_path": "d"})
        if job.rule == "encoder":
            write_json(job.outputs[0], {"source": config.encoder.source})
        if job.rule == "embed":
            said = {k: str(v) for k, v in embed_settings(config, job.domain).items()}
            pq.write_table(pa.table({"item_id": [1]}).replace_schema_metadata(said), job.outputs[0])


def test_jobs_of_a_small_configuration(config):
    counts = Counter(job.rule for job in all_jobs(config))
    assert counts == {
        "download": 4,
        "prepare": 2,
        "images": 2,
        "encoder": 1,
        "embed": 2,
        "pretrain": 1,
        "finetune": 2,
    }
    assert {job.state for job in all_jobs(config)} == {"to do"}


def test_finished_jobs_are_done(config):
    finish(config)
    assert states(config) == {}


def test_a_file_that_is_gone_is_missed_only_where_something_is_made_of_it(config):
    finish(config)
    shutil.rmtree(config.results / "images")
    assert states(config) == {}
    (config.results / "features/siglip/shop.parquet").unlink()
    assert states(config) == {}  # the run that read it is there
    (config.results / "runs/shop/unisrec/seed_1/metrics.json").unlink()
    assert states(config) == {
        ("images", "shop"): "to do",
        ("embed", "shop"): "to do",
        ("finetune", "shop"): "to do",
    }


def test_a_run_with_other_settings_is_out_of_date_with_what_is_made_of_it(config):
    finish(config)
    pretrained = config.results / "pretrained/unisrec/config.json"
    other = read_json(pretrained)
    other["stage"]["learning_rate"] = 9.0
    write_json(pretrained, other)
    assert states(config) == {
        ("pretrain", "unisrec"): "out of date",
        ("finetune", "shop"): "out of date",
    }


def test_a_new_seed_adds_its_runs_and_leaves_the_others(config):
    finish(config)
    more = config.model_copy(update={"seeds": [1, 2]})
    runs = Counter(job.state for job in all_jobs(more) if job.rule == "finetune")
    assert runs == {"done": 2, "to do": 2}


def test_features_of_another_encoder_are_out_of_date(config):
    finish(config)
    encoder = config.encoder.model_copy(update={"source": "tiny"})
    found = states(config.model_copy(update={"encoder": encoder}))
    assert found["encoder", ""] == "out of date"
    assert found["embed", "shop"] == "out of date"
    assert ("prepare", "shop") not in found


def test_own_files_are_no_jobs(tmp_path):
    own = {"interactions": "e.csv", "features": "f.parquet"}
    changes = {"sources": [], "systems": ["sasrec_t"], "domains": {"shop": own}, "results": str(tmp_path)}
    assert Counter(job.rule for job in all_jobs(parse_config(SHOP | changes))) == {
        "prepare": 1,
        "import_features": 1,
        "finetune": 1,
    }
