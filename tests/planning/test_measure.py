"""Measurements run for every kind of system; what they measure is no number to test."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from invented_rates import rate

from mmm4rec.config import read_system
from mmm4rec.features.encoder import fetch_encoder, load_encoder
from mmm4rec.planning import measure, measure_steps
from mmm4rec.planning.rates import STEPS, read_rates


@pytest.fixture
def small(monkeypatch):
    """Catalogues of a moment."""
    monkeypatch.setattr(
        measure, "published_sizes", lambda domain: {"items": 300, "users": 10, "images": 5, "interactions": 80}
    )
    monkeypatch.setattr(measure, "RANKED", 20)
    sizes = {"batch_size": 16, "epochs": 1}

    def settings(key):
        file = read_system(key)
        stages = {
            name: how and how.model_copy(update=sizes)
            for name in ("pretrain", "indomain", "finetune")
            for how in [getattr(file, name)]
        }
        return file.model_copy(update=stages)

    monkeypatch.setattr(measure, "read_system", settings)


@pytest.mark.parametrize(
    ("system", "stages"),
    [
        ("pop", ["finetune"]),
        ("sasrec", ["finetune"]),
        ("s3rec", ["indomain", "finetune"]),
        ("mmm4rec", ["pretrain", "finetune"]),
        ("mmm4rec_noid", ["finetune"]),  # starts from the weights of mmm4rec
        ("unisrec", ["pretrain", "finetune", "scratch"]),
        ("vqrec", ["pretrain", "finetune", "scratch"]),
    ],
)
def test_stages_that_are_measured(system, stages):
    assert measure.stages(read_system(system)) == stages


@pytest.mark.parametrize(
    ("system", "stage"), [("pop", "finetune"), ("sasrec", "finetune"), ("unisrec", "finetune"), ("unisrec", "pretrain")]
)
def test_a_measurement(small, system, stage):
    rate = measure.measure_one(system, stage, "scientific", "cpu", 1)
    assert (rate.device, rate.system, rate.stage, rate.items) == ("cpu, 1 thread", system, stage, 300)
    assert rate.rows == (0 if system == "pop" else 16)
    assert (rate.step > 0) == (system != "pop")
    assert (rate.rank > 0) == (stage == "finetune")
    if system == "pop":
        assert rate.weights == 4 * 301  # a float32 an item, and the padding


def test_preparation_is_measured_a_rating(monkeypatch):
    monkeypatch.setattr(measure_steps, "RATINGS", 4000)
    rate = measure.measure_step("prepare", "ratings", "cpu")
    assert (rate.device, rate.system, rate.stage, rate.rows) == ("cpu, 1 thread", "prepare", "ratings", 4000)
    assert rate.step > 0


@pytest.mark.parametrize("what", ["texts", "images"])
def test_the_encoder_is_measured_a_text_and_a_picture(monkeypatch, tmp_path, what):
    fetch_encoder("tiny", tmp_path, offline=True)
    tiny = load_encoder(tmp_path, "cpu", "fp32")
    monkeypatch.setattr(measure_steps, "random_encoder", lambda device: tiny)
    monkeypatch.setitem(measure_steps.ENCODED, "cpu", 5)
    rate = measure.measure_step("embed", what, "cpu")
    assert (rate.device, rate.system, rate.stage, rate.rows) == ("cpu, 1 thread", "embed", what, 5)
    assert rate.step > 0


def test_steps_are_measured_beside_systems(monkeypatch, tmp_path):
    """In processes of their own, into one file; what is there already stays."""
    monkeypatch.setattr(measure, "ProcessPoolExecutor", lambda n, context: ThreadPoolExecutor(n))
    monkeypatch.setattr(measure, "measure_step", lambda key, what, device: rate(0, system=key, stage=what))
    for key in STEPS:
        measure.measure(tmp_path / "rates.csv", [key], device="cpu", steps=1)
    found = [one.key for one in read_rates(tmp_path / "rates.csv")]
    assert found == [("embed", "images"), ("embed", "texts"), ("prepare", "ratings")]


def test_invented_events_are_whole():
    events = measure.invented_events(50, 8.0, 100, pretraining=False)
    lengths = events.offsets.diff()
    assert len(events.items) == len(events.first) == len(events.times) == lengths.sum()
    assert lengths.min() >= 5
    assert lengths.double().mean() == pytest.approx(8.0, abs=0.5)
    assert len(events.train_rows()) >= 100
    assert (int(events.items.min()), int(events.items.max())) >= (1, 1)
    assert int(events.items.max()) <= 50
    assert torch.equal(events.first, events.offsets[:-1].repeat_interleave(lengths))


def test_rates_measured_again_replace_the_old_ones(monkeypatch, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from invented_rates import rate

    monkeypatch.setattr(measure, "ProcessPoolExecutor", lambda n, context: ThreadPoolExecutor(n))
    sizes = {"scientific": 1, "office": 2}
    for seconds in (1.0, 2.0):
        monkeypatch.setattr(
            measure,
            "measure_one",
            lambda key, stage, domain, device, steps, step=seconds: rate(
                sizes[domain], system=key, stage=stage, step=step
            ),
        )
        measure.measure(tmp_path / "r.csv", ["sasrec"], device="cpu", steps=1)
    assert [(r.items, r.step) for r in read_rates(tmp_path / "r.csv")] == [(1, 2.0), (2, 2.0)]
