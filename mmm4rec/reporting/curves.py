"""Figure 4, and the learning curves of all runs: the validation score against epochs and against seconds."""

import csv
import statistics
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from mmm4rec.config import read_system, system_keys
from mmm4rec.errors import UserError
from mmm4rec.io import write_text
from mmm4rec.reporting.notes import notes
from mmm4rec.reporting.plot import OTHERS, OURS, colours_of, panels, write_below, write_png
from mmm4rec.reporting.runs import Run, read_run, to_csv

#: one metric for all, else lines of a panel could not be compared; some systems stop on another
METRIC = "ndcg@10"
AXES = {"epoch": "epochs", "seconds": "seconds of training and validation"}
COLUMNS = 4  # at most, of the figure with a panel a system


class Point(NamedTuple):
    """An epoch: its number, the seconds since the start of training, the validation score."""

    epoch: int
    seconds: float
    value: float


class Curve(NamedTuple):
    """The epochs of a run; ``best`` is the one whose weights were tested."""

    dataset: str
    system: str
    seed: int
    best: int
    points: list[Point]


def write_curves(runs: Sequence[Path], out: Path) -> None:
    """Write ``fig4.csv`` (long, a row an epoch of a run) and ``fig4.png``: two panels a dataset, a line a system.

    Args:
        runs: run folders; those that trained nothing are left out.
        out: path of ``fig4.csv``.

    Raises:
        UserError: a run is not finished, or none of them has trained.
    """
    table = [read_run(path) for path in runs]
    curves = _read(runs, table, out)
    datasets = list(dict.fromkeys(curve.dataset for curve in curves))
    systems = _systems(curves)
    figure, axes = panels(len(datasets), len(AXES))
    for row, dataset in zip(axes, datasets, strict=True):
        for axis, x in zip(row, AXES, strict=True):
            for system, colour in colours_of(systems).items():
                of_system = [c for c in curves if (c.dataset, c.system) == (dataset, system)]
                _draw(axis, of_system, x, colour, read_system(system).name)
            axis.set_title(dataset, fontsize=10)
            axis.set_xlabel(AXES[x])
            if x == "seconds":
                axis.set_xscale("log")  # systems are an order of magnitude apart
                axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.xaxis.set_major_formatter("{x:g}")
                axis.xaxis.set_minor_locator(NullLocator())
        row[0].set_ylabel(f"validation {METRIC}")
    labelled = {line.get_label(): line for axis in chain(*axes) for line in axis.get_legend_handles_labels()[0]}
    figure.legend(handles=list(labelled.values()), loc="outside upper center", ncols=4, frameon=False)
    write_below(figure, {dataset: notes(table, dataset) for dataset in datasets})
    write_png(out.with_suffix(".png"), figure)


def write_curves_apart(runs: Sequence[Path], out: Path) -> None:
    """Write the same of one dataset with a panel a system, against epochs: there may be many systems.

    Raises:
        UserError: a run is not finished, or none of them has trained.
    """
    curves = _read(runs, [read_run(path) for path in runs], out)
    systems = _systems(curves)
    columns = min(COLUMNS, len(systems))
    figure, axes = panels(-(-len(systems) // columns), columns, width=2.8, height=2.1)
    highest = max(point.value for curve in curves for point in curve.points)
    for axis, system in zip(chain(*axes), systems, strict=False):
        _draw(axis, [curve for curve in curves if curve.system == system], "epoch", OURS.get(system, OTHERS[0]))
        axis.set_title(read_system(system).name, fontsize=9)
        axis.set_ylim(0, 1.05 * highest or 1)
    for axis in list(chain(*axes))[len(systems) :]:
        axis.set_axis_off()
    figure.supxlabel("epochs", fontsize=9)
    figure.supylabel(f"{curves[0].dataset}: validation {METRIC}", fontsize=9)
    write_png(out.with_suffix(".png"), figure)


def _read(runs: Sequence[Path], table: Sequence[Run], out: Path) -> list[Curve]:
    """The runs' curves, which are written to ``out`` too."""
    curves = [curve for path, run in zip(runs, table, strict=True) if (curve := _curve(path, run)).points]
    if not curves:
        raise UserError(f"{out}: none of the runs has trained, so there is no curve; name runs of other systems")
    rows = [
        [curve.dataset, curve.system, curve.seed, epoch, f"{seconds:.2f}", METRIC, f"{value:.6f}", epoch == curve.best]
        for curve in curves
        for epoch, seconds, value in curve.points
    ]
    header = ["dataset", "system", "seed", "epoch", "seconds", "metric", "value", "best"]
    write_text(out, to_csv(header, [[*row[:-1], int(bool(row[-1]))] for row in rows]))
    return curves


def _curve(path: Path, run: Run) -> Curve:
    # a first stage on the target itself (S³-Rec) costs seconds before the first epoch counted here
    seconds, points = run.get("indomain", {}).get("seconds", 0.0), []
    with (path / "history.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            seconds += float(row["seconds"]) + float(row["valid_seconds"])
            points.append(Point(int(row["epoch"]), seconds, float(row[f"valid_{METRIC}"])))
    return Curve(run["dataset"], run["system"], run["seed"], run["best_epoch"], points)


def _systems(curves: Sequence[Curve]) -> list[str]:
    """Those of the curves, in the tables' order."""
    found = {curve.system for curve in curves}
    return [key for key in system_keys() if key in found]


def mean_curve(curves: Sequence[Curve]) -> list[Point]:
    """The mean over seeds of each epoch that all of them have reached."""
    together = zip(*(curve.points for curve in curves), strict=False)
    return [
        Point(points[0].epoch, statistics.fmean(p.seconds for p in points), statistics.fmean(p.value for p in points))
        for points in together
    ]


def _draw(axis: Axes, curves: Sequence[Curve], x: str, colour: str, label: str | None = None) -> None:
    """A system's mean as a line, its seeds as thin ones with a dot on the best epoch."""
    for curve in curves:
        if len(curves) > 1:
            xs, ys = [getattr(p, x) for p in curve.points], [p.value for p in curve.points]
            axis.plot(xs, ys, color=colour, linewidth=0.6, alpha=0.6)
        best = curve.points[curve.best - 1]
        axis.plot([getattr(best, x)], [best.value], "o", color=colour, markersize=5)
    mean = mean_curve(curves) if curves else []
    axis.plot([getattr(p, x) for p in mean], [p.value for p in mean], color=colour, linewidth=1.8, label=label)
    if x == "epoch":
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
