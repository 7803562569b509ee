import csv
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmm4rec.errors import UserError
from mmm4rec.reporting.table1 import COLUMNS, PUBLISHED, SIZES, write_table1

SCIENTIFIC = (8442, 4385, 59427)
SOURCES = ("food", "cds", "kindle", "movies", "home")


def domain(folder, users, items, interactions):
    folder.mkdir(parents=True)
    mean = interactions / users
    rows = [("stage", "users", "items", "interactions", "mean_length"), ("raw", 9, 9, 9, 1.0)]
    rows.append(("k_core", users, items, interactions, f"{mean:.2f}"))
    (folder / "statistics.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return folder


def read(path):
    with path.open() as file:
        return {row["dataset"]: row for row in csv.DictReader(file)}


def published():
    with PUBLISHED.open() as file:
        return {row["domain"]: row for row in csv.DictReader(file)}


def test_published_numbers():
    rows = published()
    assert len(rows) == 11
    assert all(set(row) == {"domain", *SIZES} for row in rows.values())
    for name in ("users", "items", "images", "interactions"):
        assert sum(int(rows[key][name]) for key in SOURCES) == int(rows["pretrain"][name])


def test_a_domain_of_the_paper_and_an_own_one(tmp_path):
    domains = {"sci": domain(tmp_path / "sci", *SCIENTIFIC), "shop": domain(tmp_path / "shop", 2, 4, 10)}
    has_image = pa.array([True] * 1585 + [False] * 2800)
    has_text = pa.array([True] * 4373 + [False] * 12)
    pq.write_table(pa.table({"has_text": has_text, "has_image": has_image}), tmp_path / "f.parquet")
    out = tmp_path / "tables" / "table1.csv"
    write_table1(domains, {"sci": tmp_path / "f.parquet"}, {"sci": "scientific"}, "error", out)
    rows = read(out)
    assert tuple(rows["sci"]) == COLUMNS
    assert tuple(rows["sci"].values()) == (
        *("sci", "8442", "4385", "1585", "0.3615", "59427", "7.04", "0.9973"),
        *("8442", "4385", "1585", "59427", "7.04"),
    )
    assert tuple(rows["shop"].values()) == ("shop", "2", "4", "", "", "10", "5.00", "", "", "", "", "", "")
    lines = out.with_suffix(".md").read_text().splitlines()
    assert lines[2].startswith("In brackets: as published.")
    assert (
        "| sci | 8,442 (8,442) | 4,385 (4,385) | 1,585 (1,585) | 36.15% | 99.73% | 59,427 (59,427) | 7.04 (7.04) |"
        in lines
    )
    assert "| shop | 2 | 4 |  |  |  | 10 | 5.00 |" in lines


def test_nothing_is_said_of_brackets_where_there_are_none(tmp_path):
    write_table1({"shop": domain(tmp_path / "shop", 2, 4, 10)}, {}, {}, "error", tmp_path / "table1.csv")
    assert "brackets" not in (tmp_path / "table1.md").read_text()


def test_the_gate(tmp_path, caplog):
    domains = {"sci": domain(tmp_path / "sci", 8442, 4386, 59420)}
    out = tmp_path / "table1.csv"
    message = r"sci has 4,386 items, published 4,385 \(\+1\); sci has 59,420 interactions, published 59,427 \(-7\)"
    with pytest.raises(UserError, match=message):
        write_table1(domains, None, {"sci": "scientific"}, "error", out)
    assert not out.exists()
    with caplog.at_level(logging.WARNING):
        write_table1(domains, None, {"sci": "scientific"}, "warn", out)
    assert "4,386 items, published 4,385" in caplog.text
    assert read(out)["sci"]["items"] == "4386"
    caplog.clear()
    write_table1(domains, None, {"sci": "scientific"}, "off", out)
    assert not caplog.text


@pytest.mark.parametrize(("users", "passes"), [(87346, True), (87436, True), (87347, False)])
def test_a_slip_of_print_is_accepted(tmp_path, users, passes):
    domains = {"office": domain(tmp_path / "office", users, 25986, 684837)}
    out = tmp_path / "table1.csv"
    if passes:
        write_table1(domains, None, {"office": "office"}, "error", out)
        assert read(out)["office"]["published_users"] == "87436"
        assert "87,346 is right" in out.with_suffix(".md").read_text()
    else:
        with pytest.raises(UserError, match="office has 87,347 users"):
            write_table1(domains, None, {"office": "office"}, "error", out)


def test_the_union_of_the_sources(tmp_path):
    rows = published()
    domains = {
        key: domain(tmp_path / key, *(int(rows[key][name]) for name in ("users", "items", "interactions")))
        for key in SOURCES
    }
    out = tmp_path / "table1.csv"
    write_table1(domains, None, {key: key for key in SOURCES}, "error", out, sources=SOURCES)
    union = read(out)["pretrain"]
    assert (union["users"], union["items"], union["interactions"]) == ("1361408", "446975", "14029229")
    assert (union["images"], union["mean_length"], union["published_mean_length"]) == ("", "10.30", "13.51")
    text = out.with_suffix(".md").read_text()
    assert "kindle | 138,436 (138,436) | 98,111 (98,111) |  (0) |" in text
    for slip in ("movies, items: 59,203 is right", "cds, mean length: 11.90 is", "pretrain, mean length: 10.30 is"):
        assert f"- {slip}" in text
    write_table1(domains, None, {}, "error", out, sources=["food", "cds"])
    assert read(out)["pretrain"]["published_users"] == ""
    assert read(out)["pretrain"]["users"] == str(115349 + 94010)
