import subprocess
import sys
from pathlib import Path

import pytest

from mmm4rec.data.registry import _registry, paper_name, raw_path, source

KNOWN = {"category", "edition", "kind", "bytes", "sha256"}


def test_raw_paths():
    raw = Path("data/raw")
    assert raw_path(raw, "Toys", 2018, "ratings") == Path("data/raw/Toys.csv")
    assert raw_path(raw, "Toys", 2018, "metadata") == Path("data/raw/meta_Toys.json.gz")
    assert raw_path(raw, "Toys", 2023, "ratings") == Path("data/raw/2023/Toys.csv.gz")
    assert raw_path(raw, "Toys", 2023, "metadata") == Path("data/raw/2023/meta_Toys.jsonl.gz")


@pytest.mark.parametrize("edition", [2018, 2023])
@pytest.mark.parametrize("kind", ["ratings", "metadata"])
@pytest.mark.parametrize("category", ["Prime_Pantry", "A_Category_Nobody_Listed"])
def test_every_category_has_mirrors(category, edition, kind):
    found = source(category, edition, kind)
    assert len(found.urls) >= 2
    assert all(url.startswith("https://") and category in url and "{" not in url for url in found.urls)
    assert found.bytes is None
    assert found.sha256 is None
    assert found.licence


def test_files_of_the_paper_are_listed_once():
    rows = _registry()["files"]
    assert all(set(row) == KNOWN for row in rows)
    names = [(row["category"], row["edition"], row["kind"]) for row in rows]
    assert len(set(names)) == len(names) == 38  # ten categories, two files, two editions; Prime_Pantry ends with 2018
    assert {row["category"] for row in rows} == set(_registry()["paper_names"])


def test_paper_names():
    assert paper_name("Industrial_and_Scientific") == "scientific"
    assert paper_name("Magazine_Subscriptions") is None


def test_the_registry_is_light():
    code = "import sys, mmm4rec.data.registry; print({'polars', 'torch', 'requests', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
