"""Environment records, and the warning where code and versions disagree."""

import hashlib
import json
import logging
import subprocess

import pytest
import torch

from mmm4rec import provenance
from mmm4rec.config import read_system
from mmm4rec.versions import VERSIONS


def write_run(folder, **changes):
    """A finished run of SASRec, made with this checkout's code unless ``changes`` say otherwise."""
    modules = ["mmm4rec.training", "mmm4rec.models.sasrec"]
    version = [VERSIONS["finetune"], read_system("sasrec").version]
    config = {"system": "sasrec", "domain": "shop", "version": version}
    made = {"commit": None, "mmm4rec": "0.1.0", "code": {"modules": modules, "sha256": provenance.code_hash(modules)}}
    (folder / "config.json").write_text(json.dumps(config | changes.get("config", {})))
    (folder / "environment.json").write_text(json.dumps(made | changes.get("made", {})))
    return folder


OTHER_CODE = {"code": {"modules": ["mmm4rec.training"], "sha256": "0" * 64}}


def test_environment_is_plain_json_with_versions_device_and_code():
    made = provenance.environment(["mmm4rec.nn"], "cpu")
    assert json.loads(json.dumps(made)) == made
    assert set(made["packages"]) >= {"torch", "numpy", "pyarrow"}
    assert made["code"] == {"modules": ["mmm4rec.nn"], "sha256": provenance.code_hash(["mmm4rec.nn"])}
    assert made["threads"] >= 1


def test_the_device_is_the_one_that_was_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert provenance.environment([], "cuda")["device"] == "a GPU"
    made = provenance.environment([], "cpu")
    assert (made["device"], made["cuda"]) == (provenance._processor(), None)


def test_a_processor_has_a_family_and_a_model_where_its_name_says_little(monkeypatch):
    said = "processor : 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\nprocessor : 1\nmodel\t: 2\n"
    monkeypatch.setattr(provenance.Path, "read_text", lambda *_, **__: said)
    assert provenance._processor() == "AMD EPYC (family 25, model 1)"
    monkeypatch.setattr(provenance.Path, "read_text", lambda *_, **__: "model name : Abacus\n")
    assert provenance._processor() == "Abacus"


def test_the_hash_covers_names_and_contents_of_all_modules(tmp_path, monkeypatch):
    package = tmp_path / "mmm4rec"
    (package / "sub").mkdir(parents=True)
    (package / "a.py").write_text("1")
    (package / "sub" / "b.py").write_text("2")
    (package / "c.py").write_text("3")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    first = provenance.code_hash(["mmm4rec.sub", "mmm4rec.a"])
    assert first == hashlib.sha256(b"a.py\0001\0sub/b.py\0002\0").hexdigest()
    assert provenance.code_hash(["mmm4rec.a", "mmm4rec.sub"]) == first
    (package / "c.py").write_text("unrelated")
    assert provenance.code_hash(["mmm4rec.sub", "mmm4rec.a"]) == first
    (package / "sub" / "b.py").write_text("changed")
    assert provenance.code_hash(["mmm4rec.sub", "mmm4rec.a"]) != first


def test_commit_of_a_checkout_and_outside_of_one(tmp_path, monkeypatch):
    package = tmp_path / "mmm4rec"
    package.mkdir()
    monkeypatch.setattr(provenance, "PACKAGE", package)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (tmp_path / "pyproject.toml").write_text("")
    frozen = tmp_path / "published" / "mine" / "provenance.json"
    frozen.parent.mkdir(parents=True)
    frozen.write_text("{}")
    assert provenance.commit() is None  # no repository
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert provenance.commit() == head
    frozen.unlink()  # as Snakemake does before it is made again
    assert provenance.commit() == head
    (tmp_path / "pyproject.toml").write_text("changed")
    assert provenance.commit() == f"{head}-dirty"
    (tmp_path / "pyproject.toml").unlink()
    assert provenance.commit() is None  # installed inside somebody else's repository


def test_no_git_is_no_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() is None
    assert provenance.environment([], "cpu")["commit"] is None


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"made": OTHER_CODE}, False),
        ({"made": OTHER_CODE, "config": {"version": [0, 1]}}, True),  # raised by hand: it will be run again anyway
        ({"made": OTHER_CODE, "config": {"system": "gone"}}, True),
    ],
)
def test_changed_code_under_the_same_version_is_warned_of(tmp_path, caplog, changes, fits):
    run = write_run(tmp_path, **changes)
    with caplog.at_level(logging.WARNING):
        assert provenance.check(run) is fits
    assert (str(run) in caplog.text and "VERSIONS['finetune']" in caplog.text) is not fits
