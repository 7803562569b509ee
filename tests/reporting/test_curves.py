import csv
import json

import pytest
from finished_runs import write_run

from mmm4rec.errors import UserError
from mmm4rec.io import write_json, write_text
from mmm4rec.reporting import curves
from mmm4rec.reporting.curves import Curve, Point, mean_curve, write_curves, write_curves_apart

HEADER = "epoch,loss,seconds,valid_ndcg@10,valid_seconds\n"


def write_trained(root, system, seed, values, best, dataset="scientific", **metrics):
    """A run whose epochs take 2 seconds of training and 0.5 of validation each."""
    path = write_run(root, system, seed, 0.1, dataset)
    epochs = "".join(f"{epoch},1.0,2.0,{value},0.5\n" for epoch, value in enumerate(values, start=1))
    write_text(path / "history.csv", HEADER + epochs)
    write_json(path / "metrics.json", json.loads((path / "metrics.json").read_text()) | {"best_epoch": best} | metrics)
    return path


def rows(out):
    return list(csv.DictReader(out.read_text().splitlines()))


@pytest.fixture
def figures(monkeypatch):
    """Figures that would be written."""
    found = []
    monkeypatch.setattr(curves, "write_png", lambda path, figure: found.append(figure))
    return found


def test_a_row_an_epoch_with_validation_in_the_seconds(tmp_path):
    run = write_trained(tmp_path, "mmm4rec", 1, [0.1, 0.3, 0.2], best=2)
    out = tmp_path / "fig4.csv"
    write_curves([run], out)
    assert [list(row.values()) for row in rows(out)] == [
        ["scientific", "mmm4rec", "1", "1", "2.50", "ndcg@10", "0.100000", "0"],
        ["scientific", "mmm4rec", "1", "2", "5.00", "ndcg@10", "0.300000", "1"],
        ["scientific", "mmm4rec", "1", "3", "7.50", "ndcg@10", "0.200000", "0"],
    ]
    assert (tmp_path / "fig4.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_first_stage_on_the_target_is_in_the_seconds(tmp_path):
    run = write_trained(tmp_path, "s3rec", 1, [0.1], best=1, indomain={"epochs": 4, "seconds": 10.0})
    write_curves([run], tmp_path / "fig4.csv")
    assert [row["seconds"] for row in rows(tmp_path / "fig4.csv")] == ["12.50"]


def test_the_mean_goes_as_far_as_all_seeds():
    first = Curve("d", "sasrec", 1, 1, [Point(1, 2.0, 0.1), Point(2, 4.0, 0.2), Point(3, 6.0, 0.9)])
    second = Curve("d", "sasrec", 2, 1, [Point(1, 4.0, 0.3), Point(2, 8.0, 0.6)])
    assert mean_curve([first, second]) == [Point(1, 3.0, 0.2), Point(2, 6.0, pytest.approx(0.4))]
    assert mean_curve([first]) == first.points


def test_lines_of_two_seeds_and_the_best_epochs(tmp_path, figures):
    runs = [
        write_trained(tmp_path, "mmm4rec", 1, [0.1, 0.3], best=2),
        write_trained(tmp_path, "mmm4rec", 2, [0.3, 0.1, 0.2], best=1),
    ]
    write_curves(runs, tmp_path / "fig4.csv")
    by_epoch, by_seconds = figures[0].axes
    first, first_best, second, second_best, mean = [line.get_xydata().tolist() for line in by_epoch.lines]
    assert first == [[1, 0.1], [2, 0.3]]
    assert first_best == [[2, 0.3]]
    assert second == [[1, 0.3], [2, 0.1], [3, 0.2]]
    assert second_best == [[1, 0.3]]
    assert mean == [[1, pytest.approx(0.2)], [2, pytest.approx(0.2)]]
    assert by_seconds.lines[1].get_xydata().tolist() == [[5.0, 0.3]]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["MMM4Rec"]


def test_one_seed_is_one_line_and_its_dot_and_a_panel_a_dataset_and_axis(tmp_path, figures):
    runs = [write_trained(tmp_path, "mmm4rec", 1, [0.1], best=1, dataset=name) for name in ("arts", "office")]
    write_curves(runs, tmp_path / "fig4.csv")
    assert [axis.get_title() for axis in figures[0].axes] == ["arts", "arts", "office", "office"]
    assert [len(axis.lines) for axis in figures[0].axes] == [2, 2, 2, 2]


def test_a_panel_a_system_on_one_scale(tmp_path, figures):
    systems = {"mmm4rec": 0.4, "sasrec": 0.2}
    runs = [write_trained(tmp_path, system, 1, [value], best=1) for system, value in systems.items()]
    write_curves_apart(runs, tmp_path / "curves.csv")
    drawn = [axis for axis in figures[0].axes if axis.axison]
    assert [axis.get_title() for axis in drawn] == ["SASRec", "MMM4Rec"]
    assert [axis.get_ylim() for axis in drawn] == [(0.0, pytest.approx(0.42))] * 2


def test_what_trains_nothing_has_no_curve(tmp_path, figures):
    pop = write_trained(tmp_path, "pop", 1, [], best=0)
    write_curves([pop, write_trained(tmp_path, "sasrec", 1, [0.1], best=1)], tmp_path / "fig4.csv")
    assert {row["system"] for row in rows(tmp_path / "fig4.csv")} == {"sasrec"}
    with pytest.raises(UserError, match="none of the runs has trained"):
        write_curves([pop], tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()
