"""Fixtures shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from prepared_domain import write_domain

if not torch.cuda.is_available():  # then Triton's kernels are interpreted; it has to know before it is imported
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("any machine", deadline=None)  # a slow machine is no failure
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: threads only cost here, and one thread makes sums reproducible."""
    torch.set_num_threads(1)


@pytest.fixture
def make_domain(tmp_path: Path) -> Callable[..., Path]:
    """Writes prepared domains below the test's folder."""

    def make(sequences, times=None, name="domain", **about_items):
        return write_domain(tmp_path / name, sequences, times, **about_items)

    return make
