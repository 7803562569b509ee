"""Pre-training by two processes, with gloo on a CPU, against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared_domain import write_domain
from train_together import FEWER_WORDS, SYSTEMS, WITHOUT_DROPOUT, trained

from mmm4rec.config import Config, finetune_settings, pretrain_settings
from mmm4rec.errors import UserError
from mmm4rec.features.store import write_features
from mmm4rec.training.distributed import process_group
from mmm4rec.training.finetune import finetune
from mmm4rec.training.pretrain import pretrain
from mmm4rec.training.run import read_weights

ROOT = Path(__file__).resolve().parents[2]
#: 37 training rows: the last batch of 16 has 5 of them, the last of 4 has one, fewer than processes
SEQUENCES = [[(3 * s + k * (1 + s % 3)) % 12 + 1 for k in range(2 + s % 5)] for s in range(12)] + [[12, 1]] * 4
TIMES = [[1_500_000_000 + 86_400 * k * k for k in range(len(s))] for s in SEQUENCES]


def torchrun(*arguments):
    """Two processes, at whatever port is free; what they print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, env=here)
    assert done.returncode == 0, done.stderr
    return done.stderr


def assert_close(got, want, **tolerance):
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


# ------------------------------------------------------------------------------------------------ the same result


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The domain, and what each of two processes has trained."""
    folder = tmp_path_factory.mktemp("together")
    write_domain(folder / "domain", SEQUENCES, TIMES)
    torchrun(Path(__file__).with_name("train_together.py"), folder)
    return folder / "domain", *(torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("key", SYSTEMS)
def test_two_processes_train_what_one_does(together, key):
    """UniSRec's noise and augmented rows, MISSRec's clusters and VQRec's random codes are drawn alike too."""
    domain, first, second = together
    alone = trained(domain, key, **WITHOUT_DROPOUT[key])
    assert first[key]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert_close(first[key]["weights"], alone["weights"], rtol=1e-4, atol=1e-5)
    assert_close(second[key]["weights"], first[key]["weights"], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["unisrec", "missrec"])
def test_which_batches_have_texts_with_words_left_out_is_drawn_alike(together, key):
    domain, first, second = together
    alone = trained(domain, key, **WITHOUT_DROPOUT[key], **FEWER_WORDS)
    here, there = (result[f"{key}, fewer words"] for result in (first, second))
    assert here["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert here["losses"] != pytest.approx(first[key]["losses"], rel=1e-5)
    assert_close(here["weights"], alone["weights"], rtol=1e-4, atol=1e-5)
    assert_close(there["weights"], here["weights"], rtol=0, atol=0)


@pytest.mark.slow
def test_a_batch_of_fewer_rows_than_processes(together):
    domain, first, _ = together
    alone = trained(domain, "zesrec", batch_size=4, dropout=0.0)
    assert_close(first["lone row"]["weights"], alone["weights"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_dropout_keeps_the_processes_together(together):
    domain, first, second = together
    assert_close(second["dropout"]["weights"], first["dropout"]["weights"], rtol=0, atol=0)
    alone = trained(domain, "unisrec", epochs=3, optimizer="nadam")
    assert first["dropout"]["losses"] == pytest.approx(alone["losses"], rel=0.2)
    assert first["dropout"]["losses"] != alone["losses"]  # other masks


@pytest.mark.slow
def test_a_killed_training_goes_on_in_all_processes(together):
    _, *ranks = together
    for result in ranks:
        assert result["resumed"]["losses"] == result["dropout"]["losses"]
        assert_close(result["resumed"]["weights"], result["dropout"]["weights"], rtol=0, atol=0)


@pytest.mark.slow
def test_a_state_that_not_all_processes_see_is_refused(together):
    _, first, second = together
    assert "would go on after different epochs [0, 1]" in first["error"]
    assert first["error"] == second["error"]


# ------------------------------------------------------------------------------------------------ the command


SMALL = {"hidden_size": 16, "head_size": 8, "state_size": 4, "inner_size": 16, "max_length": 6, "dropout": 0.0}


@pytest.fixture
def config():
    return Config(
        targets=["shop"],
        sources=["other"],
        systems=["mmm4rec", "mmsrec"],
        domains={"shop": {"interactions": "shop.csv"}, "other": {"interactions": "other.csv"}},
        pretrain={"epochs": 2, "batch_size": 16, "accumulate": 1},
        settings={"mmm4rec": SMALL},
    )


@pytest.mark.slow
def test_the_command_writes_one_run_and_one_log(config, make_domain, tmp_path):
    other = make_domain(SEQUENCES, TIMES, name="other")
    draw = np.random.default_rng(0)
    text, image = (draw.normal(size=(12, 8)).astype(np.float16) for _ in range(2))
    there, names = np.ones(12, bool), [f"item-{i}" for i in range(1, 13)]
    write_features(tmp_path / "f.parquet", np.arange(1, 13), names, text, there, image, there, {})
    settings = pretrain_settings(config, "mmm4rec")
    pretrain(settings, [other], [tmp_path / "f.parquet"], tmp_path / "alone", device="cpu")
    paths = {"domain": other, "features": tmp_path / "f.parquet", "out": tmp_path / "together"}
    paths |= {"state": tmp_path / "state", "tensorboard": tmp_path / "tb"}
    options = [part for name, path in paths.items() for part in (f"--{name}", path)]
    log = torchrun("-m", "mmm4rec", "pretrain", "--settings", json.dumps(settings), "--device", "cpu", *options)
    assert [log.count(f"INFO {line}") for line in ("mmm4rec pretrain", "epoch 1:", "epoch 2:")] == [1, 1, 1]
    assert len(list((tmp_path / "tb").iterdir())) == 1
    assert not (tmp_path / "state").exists()
    assert {p.name for p in (tmp_path / "together").iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}
    assert_close(read_weights(tmp_path / "together"), read_weights(tmp_path / "alone"), rtol=1e-4, atol=1e-5)
    made = [json.loads((tmp_path / run / "environment.json").read_text()) for run in ("alone", "together")]
    assert [environment["processes"] for environment in made] == [1, 2]


# ------------------------------------------------------------------------------------------------ what cannot be done


@pytest.fixture
def as_torchrun(monkeypatch):
    """The environment of the first of three processes."""
    given = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)


def test_a_system_that_takes_one_device_says_so(as_torchrun, config, tmp_path):
    with pytest.raises(UserError, match="mmsrec pre-trains on one device alone"):
        pretrain(pretrain_settings(config, "mmsrec"), [], [], tmp_path / "run", device="cpu")


def test_fine_tuning_takes_one_device(as_torchrun, config, tmp_path):
    settings = finetune_settings(config, "mmm4rec", "shop", 1)
    with pytest.raises(UserError, match="mmm4rec finetune runs on one device: start it without torchrun"):
        finetune(settings, tmp_path, None, None, tmp_path / "run", device="cpu")


def test_more_processes_than_gpus(as_torchrun, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UserError, match="starts 3 processes for 2 GPUs: lower --nproc-per-node to 2"),
        process_group(torch.device("cuda"), "mmm4rec"),
    ):
        pass
