"""Hours, memory and disk, worked out by hand."""

import csv
import doctest
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from invented_rates import rate
from rich.console import Console

from mmm4rec.config import finetune_settings, parse_config, pretrain_settings, read_system
from mmm4rec.errors import UserError
from mmm4rec.io import write_json
from mmm4rec.planning import show
from mmm4rec.planning.cost import make_plan
from mmm4rec.planning.show import print_plan, write_plan
from mmm4rec.planning.sizes import domain_size

PAPER = {"scientific": {"amazon": "Industrial_and_Scientific"}, "office": {"amazon": "Office_Products"}}
#: seconds of a row, a user, an epoch's beginning and the item tables, whatever the catalogue
EVEN = {
    "rows": 100,
    "step": 1.0,
    "ranked": 10,
    "rank": 0.1,
    "start": 2.0,
    "tables": 3.0,
    "memory": 953.7,
    "weights": 40,
}


def even(system, stage="finetune", device="cpu, 1 thread", items=(1, 2), **values):
    """Rates at two sizes, which are the same."""
    version = read_system(system).version
    return [rate(n, system=system, stage=stage, device=device, version=version, **EVEN | values) for n in items]


@pytest.fixture
def config(tmp_path):
    """Makes a configuration below the test's folder."""

    def make(**changes):
        plain = {"targets": ["scientific"], "systems": ["sasrec"], "seeds": [1, 2], "domains": PAPER, "device": "cpu"}
        plain["table4"] = {"targets": []}
        folders = {"results": str(tmp_path / "r"), "raw": str(tmp_path / "raw")}
        folders["encoder"] = {"folder": str(tmp_path / "encoders")}
        return parse_config(plain | folders | changes)

    return make


def line(plan, step, system=""):
    (found,) = [one for one in plan.lines if (one.step, one.system) == (step, system)]
    return found


def write_finished(config, system, domain, seed, *, epochs=4, seconds=10.0, valid=2.0, gpu=None, **other):
    """A finished run that took so many epochs of so many seconds; ``other`` changes its settings."""
    folder = config.results / "runs" / domain / system / f"seed_{seed}"
    write_json(folder / "config.json", finetune_settings(config, system, domain, seed) | other)
    write_json(
        folder / "metrics.json", {"epochs": epochs, "peak_memory_mib": 500.0, "peak_gpu_memory_mib": gpu, "users": 3}
    )
    write_json(folder / "environment.json", {"device": "an abacus"})
    rows = [{"epoch": n, "seconds": seconds, "valid_seconds": valid} for n in range(1, epochs + 1)]
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "seconds", "valid_seconds"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_hours_of_a_printed_domain(config):
    """Scientific in print: 59427 events of 8442 users, so 34101 rows; sasrec stops after 11 to 300 epochs."""
    found = line(make_plan(config(), even("sasrec"), gpu=False), "finetune", "sasrec")
    ranking = 3 + 8442 * 0.01
    epoch = 2 + 341.01 + ranking
    assert (found.jobs, found.left, found.device, found.rate_from) == (2, 2, "CPU", "rates of cpu, 1 thread")
    assert (found.epochs_least, found.epochs_most) == (11, 300)
    assert found.hours_least == pytest.approx(2 * (11 * epoch + 2 * ranking) / 3600)
    assert found.hours == found.hours_most == pytest.approx(2 * (300 * epoch + 2 * ranking) / 3600)
    assert found.epochs_from == "unknown: the most"
    assert found.memory_mib == 953.7


def test_pop_trains_nothing_and_is_ranked_twice(config):
    plan = make_plan(config(systems=["pop"]), even("pop", rows=0, step=0.0), gpu=False)
    found = line(plan, "finetune", "pop")
    assert found.hours_least == found.hours == found.hours_most == pytest.approx(2 * 2 * (3 + 84.42) / 3600)
    assert found.epochs_most is None


def test_epochs_of_table_v_s_print_and_patience(config):
    """MMM4Rec on Scientific: best after 13 epochs, patience 10, at most 100."""
    plan = make_plan(config(systems=["mmm4rec"], seeds=[1]), even("mmm4rec"), gpu=False)
    found = line(plan, "finetune", "mmm4rec")
    ranking = 3 + 84.42
    assert found.hours == pytest.approx((23 * (2 + 341.01 + ranking) + 2 * ranking) / 3600)
    assert found.epochs_from == "print of Table V"


def test_pre_training_has_its_epochs_and_all_rows(config):
    """Office, as a source: 684837 events of 87346 users (the slip of print put right); 40 epochs, nobody ranked."""
    plan = make_plan(config(systems=["mmm4rec"], sources=["office"]), even("mmm4rec", "pretrain"), gpu=False)
    found = line(plan, "pretrain", "mmm4rec")
    assert found.hours_least == found.hours_most == pytest.approx(40 * (2 + (684837 - 87346) / 100) / 3600)
    assert found.epochs_from == "fixed"
    assert line(plan, "finetune", "mmm4rec").rate_from == "no rate"


def test_an_in_domain_stage_comes_first(config):
    rates = even("s3rec") + even("s3rec", "indomain", step=2.0)
    found = line(make_plan(config(systems=["s3rec"], seeds=[1]), rates, gpu=False), "finetune", "s3rec")
    ranking = 3 + 84.42
    expected = 300 * (2 + 2 * 341.01) + 11 * (2 + 341.01 + ranking) + 2 * ranking
    assert found.hours_least == pytest.approx(expected / 3600)
    alone = line(make_plan(config(systems=["s3rec"], seeds=[1]), rates[:2], gpu=False), "finetune", "s3rec")
    assert alone.hours is None


def test_from_scratch_has_its_own_rate_where_it_was_measured(config):
    rates = even("unisrec") + even("unisrec", "scratch", step=3.0) + even("unisrec", "pretrain")
    scratch = line(make_plan(config(systems=["unisrec"]), rates, gpu=False), "finetune", "unisrec")
    plan = make_plan(config(systems=["unisrec"], sources=["office"]), rates, gpu=False)
    transferred = line(plan, "finetune", "unisrec")
    assert scratch.hours - transferred.hours == pytest.approx(2 * 300 * 2 * 341.01 / 3600)


def test_a_variant_takes_the_rate_of_what_it_is_based_on(config):
    found = line(make_plan(config(systems=["mmm4rec_noid"]), even("mmm4rec"), gpu=False), "finetune", "mmm4rec_noid")
    assert found.rate_from == "rates of cpu, 1 thread, of mmm4rec"
    assert found.hours > 0


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"sasrec": {"hidden_size": 32}}},
        {"finetune": {"batch_size": 64}},
        {"precision": "bf16-mixed"},
    ],
)
def test_a_rate_of_other_settings_says_so(config, change):
    found = line(make_plan(config(**change), even("sasrec"), gpu=False), "finetune", "sasrec")
    assert found.rate_from == "rates of cpu, 1 thread, at other settings"


def test_a_rate_at_one_size_says_so(config):
    found = line(make_plan(config(), even("sasrec", items=[300]), gpu=False), "finetune", "sasrec")
    assert found.rate_from == "rates of cpu, 1 thread, at 300 items alone"


def test_longer_training_is_the_same_work(config):
    own = config(finetune={"epochs": 20, "patience": 20, "learning_rate": 0.5})
    found = line(make_plan(own, even("sasrec"), gpu=False), "finetune", "sasrec")
    assert found.rate_from == "rates of cpu, 1 thread"
    assert found.hours_least == found.hours_most


def test_a_pre_training_and_a_first_stage_at_their_settings(config):
    rates = even("s3rec") + even("s3rec", "indomain") + even("mmm4rec") + even("mmm4rec", "pretrain")
    plan = make_plan(config(systems=["s3rec", "mmm4rec"], sources=["office"]), rates, gpu=False)
    assert {one.rate_from for one in plan.lines if one.system} == {"rates of cpu, 1 thread"}


def test_a_finished_run_of_pop_tells_no_time(config):
    own = config(systems=["pop"])
    write_finished(own, "pop", "scientific", 1, epochs=0)
    found = line(make_plan(own, even("pop"), gpu=False), "finetune", "pop")
    assert found.rate_from == "rates of cpu, 1 thread"
    assert found.hours > 0


def test_an_unknown_domain_has_no_hours(config):
    own = config(domains={"scientific": {"amazon": "Some_Shop"}})
    plan = make_plan(own, even("sasrec"), gpu=False)
    found = line(plan, "finetune", "sasrec")
    assert (found.hours, found.not_estimated, found.rate_from) == (None, 2, "size unknown")
    assert plan.sizes == {"scientific": None}


def test_own_runs_come_before_shipped_rates(config, make_domain):
    """One of two seeds is done: 4 epochs of 10 s, 2 s of validation each."""
    own = config()
    make_domain([[1, 2, 3, 4, 5]] * 2, name="r/domains/scientific")
    write_finished(own, "sasrec", "scientific", 1)
    found = line(make_plan(own, even("sasrec"), gpu=False), "finetune", "sasrec")
    assert (found.jobs, found.done, found.left, found.out_of_date) == (2, 1, 1, 0)
    assert found.rate_from == "own runs"
    assert found.epochs_from == "median of 1 finished run"
    assert found.hours_least == pytest.approx((11 * 12 + 4) / 3600)
    assert found.hours == found.hours_least  # it stopped before patience could have run out
    assert found.memory_mib == 500.0


def test_a_run_with_other_settings_is_out_of_date_and_no_measure(config):
    own = config(seeds=[1])
    write_finished(own, "sasrec", "scientific", 1, settings={"hidden_size": 1})
    found = line(make_plan(own, even("sasrec"), gpu=False), "finetune", "sasrec")
    assert (found.left, found.out_of_date, found.rate_from) == (1, 1, "rates of cpu, 1 thread")


def test_own_runs_elsewhere_scale_the_rates(config):
    """Office took 4 times what the rate says of its 422799 rows; so will Scientific."""
    own = config(seeds=[1])
    write_finished(own, "sasrec", "office", 1, seconds=4 * (2 + 4227.99))
    ranking = 3 + 84.42
    found = line(make_plan(own, even("sasrec"), gpu=False), "finetune", "sasrec")
    assert found.rate_from == "own runs on other domains, scaled by rates of cpu, 1 thread"
    assert found.hours_least == pytest.approx(4 * (11 * (2 + 341.01 + ranking) + 2 * ranking) / 3600)
    without = line(make_plan(own, [], gpu=False), "finetune", "sasrec")
    assert without.rate_from == "own runs on other domains, by rows"
    epoch, validation = 4 * 4229.99 * 34101 / 422799, 2 * 8442 / 87346
    assert without.hours_least == pytest.approx((11 * epoch + 13 * validation) / 3600)


def test_a_gpu_without_rates_is_planned_on_a_cpu_and_says_so(config):
    plan = make_plan(config(), even("sasrec"), gpu=True)
    assert line(plan, "finetune", "sasrec").device == "CPU"
    assert plan.notes[0].startswith("No GPU rate of sasrec")
    rates = even("sasrec") + even("sasrec", device="H100", step=0.01, gpu_memory=700.0)
    plan = make_plan(config(), rates, gpu=True)
    assert plan.notes == []
    found = line(plan, "finetune", "sasrec")
    assert (found.device, found.rate_from, found.gpu_memory_mib) == ("GPU", "rates of H100", 700.0)


def test_the_gpu_measured_last_or_the_one_named(config):
    rates = even("sasrec", device="H100", date="2026-01-02") + even("sasrec", device="A100", date="2026-01-01")
    found = line(make_plan(config(), rates, gpu=True), "finetune", "sasrec")
    assert found.rate_from == "rates of H100"
    found = line(make_plan(config(), rates, gpu=True, gpu_name="a100"), "finetune", "sasrec")
    assert found.rate_from == "rates of A100"
    with pytest.raises(UserError, match="--device gpu: no GPU of such a name among the rates; write cpu or cuda, or"):
        make_plan(config(), rates, gpu=True, gpu_name="gpu")


def test_steps_without_training_go_by_own_benchmarks(config):
    """Scientific (4385 items) was prepared in 43.85 s: 0.01 s an item; Office has 25986."""
    own = config(targets=["scientific", "office"])
    path = own.results / "benchmarks/prepare/scientific.tsv"
    path.parent.mkdir(parents=True)
    path.write_text("s\tmax_rss\n43.85\t100\n")
    found = line(make_plan(own, [], gpu=False), "prepare")
    assert found.hours == pytest.approx((43.85 + 259.86) / 3600)
    assert found.rate_from == "own benchmarks; own benchmarks of other domains, by items"
    assert line(make_plan(own, [], gpu=False), "download").hours is None


def per_thousand(name, what, seconds, **values):
    """A rate of a step that trains nothing."""
    known = {"device": "cpu, 1 thread", "rows": 1000, "memory": 100.0}
    return rate(0, system=name, stage=what, step=seconds, **known | values)


def test_steps_without_training_go_by_rates_where_nothing_was_run(config):
    """Scientific: 1.8 million ratings in print, 4385 texts, 1585 pictures."""
    rates = [
        per_thousand("prepare", "ratings", 2.0),
        per_thousand("embed", "texts", 30.0, memory=300.0),
        per_thousand("embed", "images", 100.0),
    ]
    own = config(systems=["sasrec_t"])
    plan = make_plan(own, rates, gpu=False)
    assert line(plan, "prepare").hours == pytest.approx(1800 * 2.0 / 3600)
    assert line(plan, "prepare").memory_mib is None  # of 500,000 ratings
    found = line(plan, "embed")
    assert found.hours == pytest.approx((4.385 * 30 + 1.585 * 100) / 3600)
    assert (found.rate_from, found.device, found.memory_mib) == ("rates of cpu, 1 thread", "CPU", 300.0)
    for lacking in (rates[:2], rates[::2]):
        assert line(make_plan(own, lacking, gpu=False), "embed").rate_from == "no rate"
    other_encoder = own.model_copy(update={"encoder": own.encoder.model_copy(update={"source": "tiny"})})
    assert line(make_plan(other_encoder, rates, gpu=False), "embed").hours is None


def test_features_are_planned_on_a_gpu_where_it_was_measured(config):
    on_cpu = [per_thousand("embed", what, 100.0) for what in ("texts", "images")]
    on_gpu = [per_thousand("embed", what, 1.0, device="H100", gpu_memory=700.0) for what in ("texts", "images")]
    own = config(systems=["sasrec_t"])
    plan = make_plan(own, on_cpu, gpu=True)
    assert line(plan, "embed").device == "CPU"
    assert "embed" in plan.notes[0]
    found = line(make_plan(own, on_cpu + on_gpu, gpu=True), "embed")
    assert (found.device, found.rate_from, found.gpu_memory_mib) == ("GPU", "rates of H100", 700.0)
    assert found.hours == pytest.approx((4.385 + 1.585) / 3600)


def test_disk(config):
    own = config(systems=["sasrec_t"], seeds=[1])
    plan = make_plan(own, even("sasrec_t"), gpu=False)
    to_come = {row.what: row.to_come for row in plan.disk}
    assert to_come == {
        "raw files": 42 * 1_800_000,  # its ratings; of metadata the publisher states no size
        "prepared domains": 6 * 59427 + 14 * 8442 + 500 * 4385,
        "images": 50_000 * 1585,
        "encoder": 4 * 203_155_970,
        "features": 2 * 768 * (4385 + 1585),
        "weights": 40,
        "runs, without weights": 8 * 8442,
        "logs, TensorBoard, state": None,
    }
    folder = own.results / "images/office"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"bytes": [100, None, 300], "shard": [0, None, 0]}), folder / "manifest.parquet")
    (images,) = [row for row in make_plan(own, [], gpu=False).disk if row.what == "images"]
    assert images.to_come == 200 * 1585
    assert images.there == (folder / "manifest.parquet").stat().st_size


def test_sizes_are_counted_where_a_domain_is_prepared(config, make_domain):
    """Users of 2, 3 and 5 events: 2 of them are ranked; 1 + 0 + 2 rows train, and 1 + 2 + 4 in pre-training."""
    own = config()
    make_domain([[1, 2], [1, 2, 3], [4, 3, 2, 1, 5]], name="r/domains/scientific")
    size = domain_size(own, "scientific")
    assert (size.users, size.items, size.images, size.rows, size.all_rows) == (2, 5, 0, 3, 7)
    assert size.origin == "prepared"
    at_most = domain_size(own, "scientific_with_image")
    assert (at_most.rows, at_most.origin) == (3, "whole, at most")


@pytest.mark.parametrize("change", [{"k_core": 10}, {"edition": 2023}])
def test_print_is_of_the_paper_s_own_domains(config, change):
    own = config(domains={"scientific": PAPER["scientific"] | change})
    assert domain_size(own, "scientific") is None


def test_further_runs_tell_epochs(config, tmp_path):
    elsewhere = config(results=str(tmp_path / "elsewhere"), seeds=[7])
    write_finished(elsewhere, "sasrec", "scientific", 7, epochs=50)
    plan = make_plan(config(), [], gpu=False, runs=[tmp_path / "elsewhere"])
    assert line(plan, "finetune", "sasrec").hours == pytest.approx(2 * (50 * 12 + 4) / 3600)
    with pytest.raises(UserError, match="no such folder"):
        make_plan(config(), [], gpu=False, runs=[tmp_path / "nowhere"])


def test_runs_of_other_machines_tell_epochs_alone(config, tmp_path):
    elsewhere = config(results=str(tmp_path / "elsewhere"), seeds=[7])
    write_finished(elsewhere, "sasrec", "scientific", 7, epochs=50)
    plan = make_plan(config(), even("sasrec"), gpu=False, elsewhere=[tmp_path / "elsewhere"])
    found = line(plan, "finetune", "sasrec")
    assert found.epochs_from == "median of 1 published run"
    assert "own runs" not in found.rate_from
    assert found.hours_least / found.hours == pytest.approx(11 / 50, rel=0.05)  # and what is ranked once, at the end


def test_a_damaged_run_is_named(config):
    own = config()
    folder = write_finished(own, "sasrec", "scientific", 1)
    (folder / "history.csv").unlink()
    with pytest.raises(UserError, match=r"seed_1: not a whole run"):
        make_plan(own, [], gpu=False)


def test_a_pre_training_of_the_same_sources_is_a_measure(config):
    own = config(systems=["mmm4rec"], sources=["office"])
    settings = pretrain_settings(own, "mmm4rec")
    folder = own.results / "pretrained/mmm4rec"
    write_json(folder / "config.json", settings | {"stage": settings["stage"] | {"epochs": 2}})
    write_json(folder / "metrics.json", {"epochs": 2, "peak_memory_mib": 9.0, "peak_gpu_memory_mib": None})
    write_json(folder / "environment.json", {"device": "an abacus"})
    (folder / "history.csv").write_text("epoch,loss,seconds\n1,1,30\n2,1,50\n")
    (folder / "model.safetensors").touch()
    found = line(make_plan(own, [], gpu=False), "pretrain", "mmm4rec")
    assert (found.out_of_date, found.rate_from) == (1, "own runs")
    assert found.hours == pytest.approx(40 * 40 / 3600)


def test_a_plan_on_the_screen_and_in_files(config, tmp_path):
    plan = make_plan(config(), even("sasrec"), gpu=True)
    file = io.StringIO()
    print_plan(plan, Console(file=file))
    text = file.getvalue()
    assert "5 jobs, 0 done, 5 left." in text  # download 2, prepare 1, finetune 2
    assert "3 jobs not estimated" in text
    write_plan(plan, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        rows = {(row["step"], row["system"]): row for row in csv.DictReader(file)}
    assert float(rows["finetune", "sasrec"]["hours"]) == line(plan, "finetune", "sasrec").hours
    assert rows["download", ""]["hours"] == ""
    write_plan(plan, tmp_path / "p.json")
    written = json.loads((tmp_path / "p.json").read_text())
    assert written["sizes"]["scientific"]["items"] == 4385
    assert written["notes"] == plan.notes
    with pytest.raises(UserError, match=r"ends in \.csv or \.json"):
        write_plan(plan, tmp_path / "p.txt")


def test_hours_are_shown_as_documented():
    assert doctest.testmod(show).failed == 0


def test_nothing_left_is_no_hours(config, make_domain):
    own = config(systems=["pop"], seeds=[1])
    write_finished(own, "pop", "scientific", 1, epochs=0)
    make_domain([[1, 2, 3, 4, 5]] * 2, name="r/domains/scientific")
    for number in (1, 2):
        path = own.results / f"tables/table{number}.csv"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    plan = make_plan(own, even("pop"), gpu=True)
    assert {one.left for one in plan.lines} == {0}
    assert all(one.hours is None and not one.rate_from for one in plan.lines)
    assert len(plan.notes) == 1
    assert "prepared domains and pictures (`k_core`, `max_side`) are not compared" in plan.notes[0]
