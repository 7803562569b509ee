"""Which device a command takes."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mmm4rec import device as module
from mmm4rec.device import resolve_device
from mmm4rec.errors import UserError


def test_cuda_asked_for_and_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        resolve_device("cuda")
    assert resolve_device("auto").type == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:1", ""])
def test_a_device_of_another_name(device):
    with pytest.raises(UserError, match=f"device: {device} is none of auto, cpu and cuda; .* CUDA_VISIBLE_DEVICES"):
        resolve_device(device)


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Four GPUs that are none, and a folder of locks of their own; those that were made the current one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}"))
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "_leased", {})
    return chosen


HOLD = """
import fcntl, sys
files = [open(name, "a") for name in sys.argv[1:]]
for file in files:
    fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def another_process(tmp_path):
    """A function that lets another process have GPUs until the end of the test."""
    started = []

    def has(*indices):
        names = [str(tmp_path / f"mmm4rec-{os.getuid()}-gpu-GPU-{index}.lock") for index in indices]
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"

    yield has
    for process in started:
        process.communicate()


def test_jobs_side_by_side_take_different_gpus(gpus, another_process):
    another_process(0, 2)
    assert resolve_device("auto") == torch.device("cuda", 1)
    assert resolve_device("cuda") == torch.device("cuda", 1), "a process keeps its own"
    assert gpus == [1, 1]


def test_a_gpu_is_shared_where_all_are_taken(gpus, another_process, monkeypatch, caplog):
    another_process(0, 1, 2, 3)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert resolve_device("cuda") == torch.device("cuda", 3)
    assert "all 4 GPUs are taken, so GPU 3 is shared" in caplog.text


def test_a_single_gpu_is_not_leased(gpus, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("cuda") == torch.device("cuda", 0)
    assert not list(tmp_path.iterdir())
