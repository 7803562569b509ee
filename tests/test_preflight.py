"""What is known of a run before its first job: own files that are missing, widths, limits of settings."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmm4rec.config import SYSTEMS_DIR, features_path, parse_config
from mmm4rec.errors import UserError
from mmm4rec.preflight import check_settings, check_widths, missing_files


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Makes a configuration of two shops in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def make(features="{}.parquet", **changes):
        domains = {
            name: {"interactions": f"{name}.csv", "items": f"{name}_items.csv"}
            | ({"features": features.format(name)} if isinstance(features, str) else {"features": features})
            for name in ("old", "new")
        }
        domains["unused"] = {"interactions": "nowhere.csv", "items": "nowhere.csv"}
        plain = {"sources": ["old"], "targets": ["new"], "systems": ["sasrec", "unisrec_t"], "domains": domains}
        return parse_config(plain | changes)

    return make


def write(*names):
    for name in names:
        Path(name).write_text("x")


def write_vectors(path, lengths, column="text", fixed=None):
    """A file of vectors of these lengths; None is null."""
    kind = pa.list_(pa.float32(), fixed) if fixed else pa.list_(pa.float32())
    vectors = pa.array([None if n is None else [0.5] * n for n in lengths], kind)
    pq.write_table(pa.table({"item_id": [f"i{k}" for k in range(len(lengths))], column: vectors}), path)


def check_files(config):
    """As `mmm4rec plan` looks for them."""
    for missing in missing_files(config):
        raise UserError(missing)
    check_widths(config)


def error(config):
    with pytest.raises(UserError) as caught:
        check_files(config)
    return str(caught.value)


def test_a_missing_own_file_is_told_with_its_key_until_nothing_is_to_be_made_of_it(config):
    config = config(features={"text": "bert.parquet"})
    assert error(config) == "domains.old.interactions: old.csv: no such file"
    write("old.csv", "old_items.csv")
    assert error(config) == "domains.old.features.text: bert.parquet: no such file"
    write("bert.parquet", "new.csv")
    assert error(config) == "domains.new.items: new_items.csv: no such file"
    prepared = config.results / "domains/new/interactions.parquet"
    prepared.parent.mkdir(parents=True)
    write(prepared)
    check_files(config)


def test_features_are_looked_for_where_a_system_reads_any_and_they_are_not_imported_yet(config):
    write("new.csv", "new_items.csv")
    check_files(config(sources=[], systems=["sasrec"]))
    reading = config(sources=[])
    assert error(reading) == "domains.new.features: new.parquet: no such file"
    imported = features_path(reading, "new")
    imported.parent.mkdir(parents=True)
    write(imported)
    check_files(reading)


@pytest.mark.parametrize("fixed", [False, True])
def test_widths_of_features_are_compared_where_systems_transfer(config, fixed):
    write("old.csv", "old_items.csv", "new.csv", "new_items.csv")
    write_vectors("old.parquet", [None] * 2000 + [8], fixed=8 if fixed else None)
    write_vectors("new.parquet", [None, 16], fixed=16 if fixed else None)
    assert error(config()) == (
        "domains.new.features: new.parquet has text vectors of 16 numbers, old.parquet of 8; transfer needs features "
        "of one encoder: bring such, or name no `sources`"
    )
    check_files(config(sources=[]))
    check_files(config(systems=["sasrec", "fdsa"]))
    write_vectors("new.parquet", [8])
    check_files(config())


def test_widths_of_what_no_system_reads_and_files_that_are_none_are_left_to_the_import(config):
    write("old.csv", "old_items.csv", "new.csv", "new_items.csv")
    write_vectors("old.parquet", [8], "image")
    write_vectors("new.parquet", [16], "image")
    check_files(config())
    assert "has image vectors of 16 numbers" in error(config(systems=["mmm4rec_noid"]))
    write("new.parquet")
    check_files(config(systems=["mmm4rec_noid"]))
    pq.write_table(pa.table({"item_id": ["a"], "image": [0.5]}), "new.parquet")
    check_files(config(systems=["mmm4rec_noid"]))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sasrec": {"heads": 3}}, "settings.sasrec: hidden_size 64 is not a multiple of heads 3"),
        ({"sasrec": {"dropout": 2.0}}, "settings.sasrec: dropout: expected less than 1, found 2.0"),
        ({"sasrec": {"hidden_size": 0}}, "settings.sasrec: hidden_size: expected at least 1, found 0"),
        ({"mmm4rec": {"skip": "zz"}}, "settings.mmm4rec: skip: expected 'x' or 'dt_x', found 'zz'"),
    ],
)
def test_settings_are_held_against_the_systems_own_limits(config, settings, expected):
    with pytest.raises(UserError) as caught:
        check_settings(config(settings=settings, systems=["sasrec", "mmm4rec_noid"]))
    assert str(caught.value) == expected
    check_settings(config(settings={"sasrec": {"hidden_size": 32}}))


def test_settings_files_of_added_systems_are_held_against_their_models(config, tmp_path, monkeypatch):
    """What comes with the package is tested, what a user adds is not."""
    folder = tmp_path / "systems"
    folder.mkdir()
    for file in SYSTEMS_DIR.glob("*.yaml"):
        (folder / file.name).write_text(file.read_text())
    monkeypatch.setattr("mmm4rec.config.SYSTEMS_DIR", folder)
    monkeypatch.setattr("mmm4rec.preflight.SYSTEMS_DIR", folder)
    own = folder / "mine.yaml"
    own.write_text("{base: sasrec, settings: {hiden_size: 8}}")
    for settings in ({}, {"mine": {"hiden_size": 4}}):
        with pytest.raises(UserError, match=r"mine\.yaml: settings: hiden_size: unknown key; is it `hidden_size`\?"):
            check_settings(config(systems=["mine"], settings=settings))
    own.write_text("{base: sasrec, settings: {heads: 1}}")
    check_settings(config(systems=["mine"]))
    own.write_text("{base: sasrec, model: items}")
    with pytest.raises(UserError, match=r"items\.py: MODEL = <class> is missing, a subclass of mmm4rec\.models\.base"):
        check_settings(config(systems=["mine"]))


def test_without_changed_settings_no_system_is_imported():
    """Snakemake would start seconds later each time."""
    code = (
        "import sys\n"
        "from mmm4rec.config import load_config\n"
        "from mmm4rec.preflight import check_settings, check_widths, missing_files\n"
        "config = load_config('config.yaml', 'config/examples/released.yaml')\n"
        "check_settings(config), list(missing_files(config)), check_widths(config)\n"
        "print([m for m in ('torch', 'polars') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
