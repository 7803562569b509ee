"""The tiny encoder, made once."""

from pathlib import Path

import pytest

from mmm4rec.features.encoder import fetch_encoder, load_encoder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    fetch_encoder("tiny", folder, offline=True)
    return folder


@pytest.fixture(scope="session")
def encoder(tiny):
    return load_encoder(tiny, "cpu", "fp32")
