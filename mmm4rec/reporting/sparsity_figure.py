"""The sparsity table as a picture: a row a dataset, a panel a group of bins, a line a system."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmm4rec.config import others, read_system
from mmm4rec.io import atomic
from mmm4rec.reporting.plot import OURS
from mmm4rec.reporting.sparsity import FEW, FEW_MARK

METRIC = "ndcg@10"
#: the panels; the last carries the names, and lines lie apart where bins differ little
TITLES = {
    "popularity": "training events of the test item",
    "image": "image of the test item",
    "text": "text of the test item",
    "history": "events before the test item",
}
BEST_BY_ID, BEST_BY_TEXT, REST = "tab:blue", "tab:green", "0.65"
NAMES_IN_A_PANEL = 22  # under each other, at the size below
NAME_SIZE = 6.5

#: rows of ``sparsity.csv``
Rows = Sequence[Mapping[str, str]]


def write_sparsity_figure(table: Path, out: Path) -> None:
    """Draw ``METRIC``; names at the right of a row say whose lines they are, in the order of its last panel.

    Args:
        table: ``sparsity.csv``.
        out: path of the PNG file.
    """
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == METRIC]
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    groups = [group for group in TITLES if any(row["group"] == group for row in rows)] or ["all"]
    figure = Figure(figsize=(3.2 * len(groups) + 1.6, 3.4 * len(datasets)), layout="constrained")
    figure.suptitle("coloured: MMM4Rec with and without ID, the best other by ids alone and with text", fontsize=8)
    panels = figure.subplots(len(datasets), len(groups), squeeze=False, sharey="row")
    for dataset, line in zip(datasets, panels, strict=True):
        mine = [row for row in rows if row["dataset"] == dataset]
        colours = colours_of({row["system"]: float(row["value"]) for row in mine if row["group"] == "all"})
        drawn = []
        for group, panel in zip(groups, line, strict=True):
            if cells := [row for row in mine if row["group"] == group]:
                _draw(panel, cells, colours, TITLES.get(group, "all users"))
                drawn.append((panel, cells))
            else:
                panel.set_axis_off()
        if drawn:
            drawn[0][0].set_ylabel(f"{dataset}: {METRIC}", fontsize=9)
            drawn[0][0].set_ylim(bottom=0)
            _name_lines(*drawn[-1], colours)
    with atomic(out) as part:
        figure.savefig(part, format="png", dpi=150)


def colours_of(values: Mapping[str, float]) -> dict[str, str]:
    """MMM4Rec with and without ID, the best other by ids alone and the best other with text in colour, the rest grey.

    Args:
        values: over all users, by system.
    """
    reads = {system: set(read_system(system).reads) for system in values}
    by_text = [system for system in others(values, "mmm4rec") if "text" in reads[system]]
    by_id = [system for system in others(values, "mmm4rec") if not reads[system] & {"text", "image"}]
    colours = dict.fromkeys(values, REST) | {system: colour for system, colour in OURS.items() if system in values}
    for group, colour in ((by_id, BEST_BY_ID), (by_text, BEST_BY_TEXT)):
        if group:
            colours[max(group, key=values.__getitem__)] = colour
    return colours


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Heights of names near those of their lines, ``gap`` apart at least, lifted where they would overlap.

    >>> spread([5.0, 1.0, 1.5], 1.0)
    [5.0, 1.0, 2.0]
    """
    heights = [0.0] * len(values)
    lowest = float("-inf")
    for i in sorted(range(len(values)), key=values.__getitem__):
        heights[i] = max(values[i], lowest)
        lowest = heights[i] + gap
    return heights


def _draw(panel: Axes, cells: Rows, colours: Mapping[str, str], title: str) -> None:
    users = {row["bin"]: int(row["users"]) for row in cells}
    for system, colour in colours.items():
        heights = [float(row["value"]) for row in cells if row["system"] == system]
        grey = colour == REST
        panel.plot(heights, color=colour, linewidth=0.7 if grey else 1.8, marker="o", markersize=2 if grey else 4)
        panel.lines[-1].set_zorder(1 if grey else 2)
    names = [f"{name}\n{number}{FEW_MARK if number < FEW else ''} users" for name, number in users.items()]
    panel.set_xticks(range(len(names)), names, fontsize=7)
    panel.set_xlim(-0.3, len(names) - 0.7)
    panel.set_xlabel(title, fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)


def _name_lines(panel: Axes, cells: Rows, colours: Mapping[str, str]) -> None:
    last = [row for row in cells if row["bin"] == cells[-1]["bin"]]
    values = [float(row["value"]) for row in last]
    top = panel.get_ylim()[1]
    end = len({row["bin"] for row in cells}) - 1
    for row, value, height in zip(last, values, spread(values, top / NAMES_IN_A_PANEL), strict=True):
        colour = colours[row["system"]]
        panel.annotate(
            read_system(row["system"]).name,
            (end, value),
            (1.06, height / top),
            textcoords="axes fraction",
            va="center",
            color="0.35" if colour == REST else colour,
            fontsize=NAME_SIZE,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "relpos": (0, 0.5), "shrinkA": 0},
        )
