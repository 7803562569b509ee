"""The workflow as a user calls it: what runs, what does not run again, and what a mistake looks like."""

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from snakemake_calls import EXAMPLE, ROOT, command, planned, snakemake

from mmm4rec.config import load_config
from mmm4rec.planning.jobs import all_jobs

DEMO = ROOT / "config/demo.yaml"
RUNS = "results/my_shop/runs/my_shop"
#: a training of a moment, whatever the system's own settings are
QUICK = {
    "device": "cpu",
    "finetune": {"epochs": 2, "batch_size": 64, "learning_rate": 0.01},
    "systems": ["pop", "sasrec"],
}


def write_shop(folder, n_users=60, n_items=24):
    """The files that the example asks for: users walk along the items, every item has features."""
    place = folder / "data/my_shop"
    place.mkdir(parents=True)
    generator = np.random.default_rng(5)
    rows = [
        (f"u{user}", f"i{(start + step) % n_items:02d}", 1_500_000_000 + 86_400 * step)
        for user, start in enumerate(generator.integers(0, n_items, n_users))
        for step in range(8)
    ]
    with (place / "interactions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("user_id", "item_id", "timestamp"), *rows])
    items = [f"i{k:02d}" for k in range(n_items)]
    with (place / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("item_id", "title", "brand"), *((item, f"thing {item}", "we") for item in items)])
    vectors = {name: list(generator.normal(size=(n_items, 6)).astype(np.float32)) for name in ("text", "image")}
    pq.write_table(pa.table({"item_id": items} | vectors), place / "features.parquet")


@pytest.fixture
def shop(tmp_path):
    write_shop(tmp_path)
    return tmp_path


def metrics(folder, system="sasrec", seed=1):
    return json.loads((folder / RUNS / system / f"seed_{seed}" / "metrics.json").read_text())["test"]


# ------------------------------------------------------------------------------------------------ plans


def test_the_paper_run_is_planned_whole(tmp_path):
    assert planned(tmp_path, example=None) == {
        "download": 20,
        "prepare": 10,
        "images": 10,
        "encoder": 1,
        "embed": 10,
        # six systems transfer, each without ids from the same weights; so do three variants of mmm4rec
        "pretrain": 6 + 3,
        "with_image": 1,  # table 4 is about Office
        # tables 2 and 3 on five targets, table 4 on one and the variants of table 6 on two
        "finetune": (20 * 5 + 4 + 4 * 2) * 3,
        "table1": 1,
        "accuracy_table": 3,
        "convergence_table": 1,
        "ablation_table": 1,
        "truncate": 2 * 20,  # figure 2: the last 1 to 20 items, one seed
        "figure": 2 + 5,
        "cost": 1,
        "provenance": 1,
        "sparsity": 1,
        "page": 6 + 3,
    }


def test_one_domain_alone_touches_nothing_of_the_other_targets(tmp_path):
    jobs = planned(tmp_path, "results/tables/table2/scientific.csv", example=None)
    assert jobs == {
        "download": 12,
        "prepare": 6,
        "images": 6,
        "encoder": 1,
        "embed": 6,
        "pretrain": 3,
        "finetune": 11 * 3,  # eleven systems stand in table 2
        "accuracy_table": 1,
    }


def test_every_table_of_one_domain_alone(tmp_path):
    """Table 4 of any target: the whole domain is prepared and embedded, and nothing is trained on it."""
    jobs = planned(tmp_path, "results/tables/table4/pantry.csv", example=None, sources=[])
    data = {"download": 2, "prepare": 1, "images": 1, "encoder": 1, "embed": 1}
    assert jobs == data | {"with_image": 1, "finetune": 4 * 3, "accuracy_table": 1}
    jobs = planned(tmp_path, "results/tables/table1/pantry.csv", example=None)
    assert jobs == data | {"table1": 1}
    for number, systems in ((5, 4), (6, 5)):
        jobs = planned(tmp_path, f"results/tables/table{number}/pantry.csv", example=None, sources=[])
        rule = {5: "convergence_table", 6: "ablation_table"}[number]
        assert jobs == data | {"finetune": 3 * systems, rule: 1}


def test_a_figure_of_one_domain_alone(tmp_path):
    """Figure 2 may be about a source; it neither needs nor touches pre-trained weights, nor runs of the tables."""
    data = {"download": 2, "prepare": 1}
    fig2 = {"systems": ["sasrec", "fdsa"], "lengths": [1, 5], "seeds": [1, 2]}
    jobs = planned(tmp_path, "results/figures/fig2/cds.png", example=None, fig2=fig2)
    assert jobs == data | {"images": 1, "encoder": 1, "embed": 1, "truncate": 2 * 2 * 2, "figure": 1}
    systems = {"systems": ["sasrec", "mmm4rec"], "sources": []}
    jobs = planned(tmp_path, "results/figures/fig4/pantry.csv", example=None, **systems)
    assert jobs == data | {"images": 1, "encoder": 1, "embed": 1, "finetune": 3, "figure": 1}


def test_the_sparsity_table_of_one_domain_alone(tmp_path):
    """Systems of Tables II and III; features only where one of them reads any."""
    target = "results/tables/sparsity/pantry.csv"
    jobs = planned(tmp_path, target, example=None, sources=[], systems=["pop", "sasrec", "mmm4rec_notime"])
    assert jobs == {"download": 2, "prepare": 1, "finetune": 2 * 3, "sparsity": 1}
    jobs = planned(tmp_path, target, example=None, sources=[], systems=["pop", "sasrec_t"])
    assert jobs == {"download": 2, "prepare": 1, "images": 1, "encoder": 1, "embed": 1, "finetune": 6, "sparsity": 1}


def test_systems_that_read_ids_alone_wait_for_no_features(tmp_path):
    jobs = planned(tmp_path, "results/tables/table2/scientific.csv", example=None, systems=["pop", "sasrec"])
    assert jobs == {"download": 2, "prepare": 1, "finetune": 6, "accuracy_table": 1}


def test_raw_files_that_are_there_are_not_downloaded(tmp_path):
    raw = tmp_path / "data/raw"
    raw.mkdir(parents=True)
    for name in ("Industrial_and_Scientific.csv", "meta_Industrial_and_Scientific.json.gz"):
        (raw / name).write_text("brought by hand")
    assert planned(tmp_path, "results/domains/scientific/items.parquet", example=None) == {"prepare": 1}
    assert (raw / "Industrial_and_Scientific.csv").read_text() == "brought by hand"


def test_own_files_need_neither_download_nor_encoder(shop):
    jobs = {"prepare": 1, "import_features": 1, "finetune": 3, "table1": 1, "accuracy_table": 2, "convergence_table": 1}
    jobs |= {"figure": 2, "cost": 1, "provenance": 1, "page": 7}  # no figure 2: nothing else asks for Kindle
    jobs["sparsity"] = 1
    assert planned(shop) == jobs
    domain = yaml.safe_load(EXAMPLE.read_text())["domains"]["my_shop"]
    domain["features"] = None
    jobs.pop("import_features")
    assert planned(shop, domains={"my_shop": domain}) == jobs | {"images": 1, "encoder": 1, "embed": 1}


def test_features_may_be_one_file_a_modality(shop):
    domain = yaml.safe_load(EXAMPLE.read_text())["domains"]["my_shop"]
    path = domain["features"]
    domain |= {"features": {"text": path, "image": path}}
    assert planned(shop, "results/my_shop/features/precomputed/my_shop.parquet", domains={"my_shop": domain}) == {
        "prepare": 1,
        "import_features": 1,
    }


@pytest.mark.parametrize("name", ["edition_2023", "released", "own_domain"])
def test_every_example_can_be_planned(shop, name):
    jobs = planned(shop, example=ROOT / f"config/examples/{name}.yaml")
    assert jobs["finetune"] == {"edition_2023": 4, "released": 11, "own_domain": 3}[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "sedes: unknown key; is it `seeds`?"),
        ({"targets": ["shoop"]}, "`targets` names the domain 'shoop', which `domains` does not define"),
        ({"systems": ["sasrek"]}, "unknown system 'sasrek'; is it `sasrec`?"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_sentence(tmp_path, changes, message):
    code, output = snakemake(tmp_path, "--dry-run", **changes)
    assert code == 1
    assert "Traceback" not in output
    last = output.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


@pytest.mark.parametrize(
    ("lost", "changes", "message"),
    [
        ("interactions.csv", {}, "domains.my_shop.interactions: data/my_shop/interactions.csv: no such file"),
        ("features.parquet", {}, "domains.my_shop.features: data/my_shop/features.parquet: no such file"),
        (None, {"settings": {"sasrec": {"heads": 3}}}, "settings.sasrec: hidden_size 64 is not a multiple of heads 3"),
    ],
)
def test_what_would_stop_a_job_is_told_before_the_first_one(shop, lost, changes, message):
    """By Snakemake, in the folder it works in, as by `mmm4rec plan`."""
    if lost:
        (shop / "data/my_shop" / lost).unlink()
    code, output = snakemake(shop, "--dry-run", **changes)
    assert code == 1
    if lost:  # Snakemake alone knows whether what is asked for needs the file
        assert f"warning: {message}" in output
        assert "Missing input files for rule" in output
    else:
        assert output.splitlines()[-1] == f"error: {message}"
    shutil.copy(ROOT / "config.yaml", shop)
    plan = [sys.executable, "-m", "mmm4rec", "plan", "--configfile", EXAMPLE, "--configfile", "changes.yaml"]
    done = subprocess.run(plan, capture_output=True, text=True, cwd=shop)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"error: {message}")


def test_a_target_alone_does_without_the_files_of_another(shop):
    lost = {"other_shop": {"interactions": "data/other_shop/lost.csv"}}
    changes = {"domains": lost, "targets": ["my_shop", "other_shop"], "systems": ["pop", "sasrec"]}
    code, output = snakemake(shop, "--dry-run", "results/my_shop/tables/table2/my_shop.csv", **changes)
    assert code == 0, output
    assert "warning: domains.other_shop.interactions: data/other_shop/lost.csv: no such file" in output
    assert snakemake(shop, "--dry-run", **changes)[0] == 1


def test_a_key_that_stands_twice_is_told(tmp_path):
    """Snakemake's own reader takes the last one."""
    (tmp_path / "twice.yaml").write_text("seeds: [1]\ndevice: cpu\nseeds: [2]\n")
    code, output = snakemake(tmp_path, "--dry-run", example=tmp_path / "twice.yaml")
    last = f"error: {tmp_path / 'twice.yaml'}: the key `seeds` stands twice, in lines 1 and 3: keep one"
    assert (code, output.splitlines()[-1]) == (1, last)


def test_an_unknown_domain_as_target_is_no_traceback(shop):
    code, output = snakemake(shop, "--dry-run", "results/my_shop/tables/table2/shoop.csv")
    assert code == 1
    assert "Traceback" not in output
    assert "No rule to produce results/my_shop/tables/table2/shoop.csv" in output


def test_the_conda_environment_names_the_packages_of_the_project():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    conda = yaml.safe_load((ROOT / "envs/mmm4rec.yaml").read_text())["dependencies"][-1]["pip"]
    assert conda == [line for line in project if not line.startswith("snakemake")]


# ------------------------------------------------------------------------------------------------ mmm4rec plan


def left(folder, example=EXAMPLE, **changes):
    """Jobs that `mmm4rec plan` says are left: {rule: number}; relative paths are those of ``folder``."""
    own = folder / "plan.yaml"
    own.write_text(yaml.safe_dump(changes))
    with contextlib.chdir(folder):
        jobs = all_jobs(load_config(ROOT / "config.yaml", *([example] if example else []), own))
    return dict(Counter(job.rule for job in jobs if job.state != "done"))


def worked(jobs):
    """Without the jobs that only put results together."""
    reporting = {rule for rule in jobs if rule.endswith(("table", "table1"))}
    reporting |= {"sparsity", "figure", "cost", "provenance", "page"}
    return {rule: count for rule, count in jobs.items() if rule not in reporting}


@pytest.mark.parametrize("name", [None, "demo", "examples/edition_2023", "examples/released", "examples/own_domain"])
def test_the_plan_counts_the_jobs_of_a_dry_run(shop, name):
    example = name and ROOT / f"config/{name}.yaml"
    assert left(shop, example) == worked(planned(shop, example=example))


def test_the_plan_counts_no_raw_file_that_is_there(tmp_path):
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/Prime_Pantry.csv").write_text("brought by hand")
    assert left(tmp_path, None) == worked(planned(tmp_path, example=None))


# ------------------------------------------------------------------------------------------------ runs


@pytest.mark.slow
def test_own_domain_end_to_end_and_what_runs_again(shop):
    code, output = snakemake(shop, **QUICK | {"systems": ["pop", "sasrec", "mmm4rec_noid"]})
    assert code == 0, output
    tables = shop / "results/my_shop/tables"
    with (tables / "table2.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["metric"] for row in rows] == ["recall@10", "recall@50", "ndcg@10", "ndcg@50"]
    assert float(rows[0]["sasrec"]) == pytest.approx(metrics(shop)["recall@10"], abs=1e-6)
    assert {path.name for path in (shop / RUNS / "pop/seed_1").iterdir()} == {
        "config.json",
        "model.safetensors",
        "history.csv",
        "metrics.json",
        "ranks.parquet",
        "environment.json",
    }
    assert (tables / "table1.csv").exists()
    assert (tables / "table3.csv").exists()
    with (tables / "sparsity.csv").open() as file:
        everybody = {(r["system"], r["metric"]): r["value"] for r in csv.DictReader(file) if r["group"] == "all"}
    assert {metric: everybody["sasrec", metric] for metric in metrics(shop)} == {r["metric"]: r["sasrec"] for r in rows}
    assert (shop / "results/my_shop/figures/sparsity.png").exists()
    assert {path.name for path in (shop / "results/my_shop/figures").rglob("*.png")} == {
        "fig4.png",
        "my_shop.png",
        "sparsity.png",
    }
    code, output = snakemake(shop, "--report", "report.zip", **QUICK | {"systems": ["pop", "sasrec", "mmm4rec_noid"]})
    assert code == 0, output
    assert "Report created" in output
    assert not list((shop / "results/my_shop/state").rglob("*.pt"))

    quick = QUICK | {"systems": ["pop", "sasrec", "mmm4rec_noid"]}
    kept = {"cost": 1, "provenance": 1}
    all_tables = {"accuracy_table": 2, "convergence_table": 1, "figure": 2, "sparsity": 1, "page": 6} | kept
    table2 = {"accuracy_table": 1, "figure": 1, "sparsity": 1, "page": 4} | kept
    assert planned(shop, **quick) == {}
    assert planned(shop, **quick | {"device": "auto", "offline": True, "images": {"tries": 1}}) == {}
    epochs = {"finetune": QUICK["finetune"] | {"epochs": 3}}
    assert planned(shop, **quick | epochs) == {"finetune": 2} | all_tables  # pop has nothing to train
    assert planned(shop, **quick | {"settings": {"sasrec": {"layers": 1}}}) == {"finetune": 1} | table2
    assert planned(shop, **quick | {"seeds": [1, 2]}) == {"finetune": 3} | all_tables

    for changes in ({}, {"seeds": [1, 2]}, epochs, {"settings": {"sasrec": {"layers": 1}}}, {"device": "auto"}):
        assert left(shop, **quick | changes) == worked(planned(shop, **quick | changes))

    alone = snakemake(shop, "results/my_shop/tables/table2/my_shop.csv", **quick)
    assert alone[0] == 0, alone[1]
    assert (tables / "table2/my_shop.csv").read_text() == (tables / "table2.csv").read_text()


@pytest.mark.slow
def test_other_brands_train_those_again_to_whom_they_are_attributes(shop):
    """Events and features stay as they are, to the byte."""
    runs = [f"{RUNS}/{system}/seed_1/metrics.json" for system in ("sasrec", "s3rec")]
    changes = QUICK | {"systems": ["sasrec", "s3rec"], "indomain": {"epochs": 1}}
    code, output = snakemake(shop, *runs, **changes)
    assert code == 0, output
    run = json.loads((shop / RUNS / "s3rec/seed_1/config.json").read_text())
    assert run["attributes"] == 1  # all items are of one brand
    items = shop / "data/my_shop/items.csv"
    items.write_text(items.read_text().replace("we", "they"))
    features = "results/my_shop/features/precomputed/my_shop.parquet"
    code, output = snakemake(shop, features, **changes)  # so that nothing is "made anew" below
    assert code == 0, output
    assert planned(shop, *runs, **changes) == {"finetune": 1}


@pytest.mark.slow
def test_transfer_between_the_demo_s_domains(tmp_path):
    """Every rule but the download, from generated raw files to recommendations in raw ids."""
    short = {"pretrain": {"epochs": 1}, "finetune": {"epochs": 1}}
    changes = {
        "sources": ["kitchen"],
        "targets": ["garage"],
        "seeds": [1],
        "systems": ["sasrec", "mmsrec", "mmm4rec", "mmm4rec_noid", "mmm4rec_scratch"],
    }
    changes["settings"] = dict.fromkeys(("mmsrec", "mmm4rec", "mmm4rec_noid"), short)
    changes["settings"]["sasrec"] = {"finetune": {"epochs": 1}}
    changes["pretrain_devices"] = 2
    changes["fig2"] = {"domain": "garage", "systems": ["mmm4rec"], "lengths": [1, 3]}
    code, output = snakemake(tmp_path, example=DEMO, **changes)
    assert code == 0, output
    results = tmp_path / "results/demo"
    assert (results / "pretrained/mmm4rec/model.safetensors").exists()
    assert json.loads((results / "pretrained/mmm4rec/environment.json").read_text())["processes"] == 2
    assert not (results / "pretrained/mmm4rec_noid").exists()
    with (results / "tables/table1.csv").open() as file:
        assert {"kitchen", "garage"} <= {row["dataset"] for row in csv.DictReader(file)}
    tables = {n: list(csv.DictReader((results / f"tables/table{n}.csv").open())) for n in (2, 3, 4, 5, 6)}
    assert {row["dataset"] for rows in tables.values() for row in rows} == {"garage"}
    for number, system in ((2, "mmm4rec"), (3, "mmm4rec_noid"), (4, "mmm4rec"), (5, "mmm4rec")):
        assert all(float(row[system]) >= 0 for row in tables[number])
    assert {row["variant"] for row in tables[6]} == {"mmm4rec", "mmm4rec_scratch"}
    others = {2: "sasrec", 3: "mmsrec", 4: "mmsrec"}
    for number, other in others.items():
        tests = list(csv.DictReader((results / f"tables/table{number}_tests.csv").open()))
        assert [row["other"] for row in tests] == [other] * 4
        marked = any(float(row["p_holm"]) < 0.05 for row in tests)
        assert ("Nothing is marked here." in (results / f"tables/table{number}.md").read_text()) != marked

    alone = [f"results/demo/tables/table{number}/garage.csv" for number in range(1, 7)]
    alone += [f"results/demo/figures/{figure}/garage.csv" for figure in ("fig2", "fig4")]
    code, output = snakemake(tmp_path, *alone, "published/garage/provenance.json", example=DEMO, **changes)
    assert code == 0, output
    for number, rows in tables.items():
        assert list(csv.DictReader((results / f"tables/table{number}/garage.csv").open())) == rows
    frozen = tmp_path / "published/garage"
    assert (frozen / "figures/fig4.png").exists()
    provenance = json.loads((frozen / "provenance.json").read_text())
    assert (provenance["missing"], provenance["not_of_config"]) == ([], [])
    code, output = snakemake(tmp_path, "--report", "report.zip", example=DEMO, **changes)
    assert code == 0, output
    users = [
        pq.read_metadata(results / f"runs/{d}/mmm4rec/seed_1/ranks.parquet").num_rows
        for d in ("garage", "garage_with_image")
    ]
    assert 0 < users[1] < users[0]

    with (results / "figures/fig2.csv").open() as file:
        shares = {row["last"]: row["share"] for row in csv.DictReader(file) if row["metric"] == "ndcg@10"}
    assert list(shares) == ["1", "3"]
    assert shares["3"] == "1.0000"
    cut = json.loads((results / "truncation/garage/mmm4rec/last_1/seed_1/config.json").read_text())
    assert (cut["pretrained"], cut["settings"]["max_length"], cut["domain"]) == (False, 1, "garage")

    items = pq.read_table(results / "domains/garage/items.parquet")["item"].to_pylist()
    ask = ["recommend", "results/demo/runs/garage/mmm4rec/seed_1", "--history", ",".join(items[:3]), "-k", "5"]
    done = subprocess.run([sys.executable, "-m", "mmm4rec", *ask], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    best = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert len(set(best)) == 5
    assert set(best) <= set(items[3:])
    timed = subprocess.run(
        [sys.executable, "-m", "mmm4rec", *ask, "--times", "1400000000,1400086400,1406000000"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert timed.returncode == 0, timed.stderr
    assert timed.stdout != done.stdout


@pytest.mark.slow
def test_a_step_that_fails_shows_its_one_line(shop):
    (shop / "data/my_shop/interactions.csv").write_text("user_id,item_id\nu1,i1\n")
    code, output = snakemake(shop, "results/my_shop/domains/my_shop/items.parquet", **QUICK)
    assert code == 1
    assert (
        "error: data/my_shop/interactions.csv: there is neither a column `timestamp` nor a column `position`" in output
    )
    assert not (shop / "results/my_shop/domains/my_shop/items.parquet").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_command(shop):
    """SIGKILL of Snakemake and its job leaves a lock; after `--unlock` the same command ends with the same numbers."""
    target = f"{RUNS}/sasrec/seed_1/metrics.json"
    long = QUICK | {"finetune": QUICK["finetune"] | {"epochs": 30, "patience": 1000}}
    arguments = command(shop, target, **long)
    running = subprocess.Popen(arguments, cwd=shop, start_new_session=True, stderr=subprocess.DEVNULL)
    log = shop / "results/my_shop/logs/finetune/my_shop/sasrec/seed_1.log"
    while not (log.exists() and "epoch 2:" in log.read_text()):
        assert running.poll() is None, "finished before it could be killed"
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (shop / target).exists()
    locked = subprocess.run(arguments, cwd=shop, capture_output=True, text=True)
    assert locked.returncode == 1
    assert "--unlock" in locked.stderr
    assert subprocess.run([*arguments, "--unlock"], cwd=shop, capture_output=True).returncode == 0
    again = subprocess.run(arguments, cwd=shop, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    found = metrics(shop)

    code, output = snakemake(shop, target, "--force", **long)
    assert code == 0, output
    assert metrics(shop) == found
