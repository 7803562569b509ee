import csv

import pytest
from finished_runs import COST, write_run

from mmm4rec.errors import UserError
from mmm4rec.reporting import truncation
from mmm4rec.reporting.truncation import write_truncation_figure

PNG = b"\x89PNG\r\n\x1a\n"


def write_runs(root, values, system="sasrec", dataset="kitchen"):
    """A run for every (last, seed): value."""
    return [
        write_run(root / str(last), system, seed, value, dataset, settings={"max_length": last})
        for (last, seed), value in values.items()
    ]


def rows(out):
    return list(csv.DictReader(out.read_text().splitlines()))


def test_means_over_the_seeds_and_shares_of_the_longest(tmp_path):
    out = tmp_path / "fig2.csv"
    runs = write_runs(tmp_path, {(20, 1): 0.3, (20, 2): 0.5, (5, 1): 0.2, (5, 2): 0.4})
    write_truncation_figure(runs, out)
    found = [(row["last"], row["value"], row["share"]) for row in rows(out) if row["metric"] == "ndcg@10"]
    assert found == [("5", "0.300000", "0.7500"), ("20", "0.400000", "1.0000")]
    assert list(rows(out)[0]) == ["dataset", "system", "last", "metric", "value", "share"]
    assert {row["metric"] for row in rows(out)} == {"recall@10", "recall@50", "ndcg@10", "ndcg@50"}
    assert (tmp_path / "fig2.png").read_bytes().startswith(PNG)


def test_systems_stand_in_the_tables_order_each_against_its_own(tmp_path):
    runs = write_runs(tmp_path, {(1, 1): 0.1, (2, 1): 0.2}, "mamba4rec") + write_runs(
        tmp_path, {(1, 1): 0.3, (2, 1): 0.4}
    )
    write_truncation_figure(runs, tmp_path / "fig2.csv")
    shares = {(row["system"], row["last"]): row["share"] for row in rows(tmp_path / "fig2.csv")}
    assert list(shares) == [("sasrec", "1"), ("sasrec", "2"), ("mamba4rec", "1"), ("mamba4rec", "2")]
    assert shares["sasrec", "1"] == "0.7500"
    assert shares["mamba4rec", "1"] == "0.5000"


def test_nothing_reached_has_no_share(tmp_path):
    write_truncation_figure(write_runs(tmp_path, {(1, 1): 0.1, (2, 1): 0.0}), tmp_path / "fig2.csv")
    assert {row["share"] for row in rows(tmp_path / "fig2.csv")} == {""}


def test_one_length_alone_is_all_of_itself(tmp_path):
    write_truncation_figure(write_runs(tmp_path, {(4, 1): 0.5}), tmp_path / "fig2.csv")
    assert {row["share"] for row in rows(tmp_path / "fig2.csv")} == {"1.0000"}


@pytest.mark.parametrize(
    ("dataset", "users", "marked"), [("kindle", 138436, 2), ("kindle", 9, 0), ("kitchen", 138436, 0)]
)
def test_print_is_marked_in_both_panels_where_the_users_are_the_paper_s(tmp_path, monkeypatch, dataset, users, marked):
    figures = []
    monkeypatch.setattr(truncation, "write_png", lambda path, figure: figures.append(figure))
    monkeypatch.setitem(COST, "users", users)
    write_truncation_figure(write_runs(tmp_path, {(5, 1): 0.4, (20, 1): 0.5}, dataset=dataset), tmp_path / "fig2.csv")
    marks = [
        (line.get_label(), line.get_xydata().tolist())
        for axis in figures[0].axes
        for line in axis.lines
        if str(line.get_label()).startswith("print")
    ]
    assert marks == [("print: 97 % with the last 5", [[5.0, 97.0]])] * marked


def test_a_system_without_the_longest_is_named(tmp_path):
    runs = write_runs(tmp_path, {(2, 1): 0.1}) + write_runs(tmp_path, {(1, 1): 0.1}, "mamba4rec")
    with pytest.raises(UserError, match="no run of mamba4rec with the last 2 items, the longest"):
        write_truncation_figure(runs, tmp_path / "fig2.csv")
    assert not (tmp_path / "fig2.csv").exists()
