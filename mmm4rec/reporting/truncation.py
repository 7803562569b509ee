"""Figure 2: how much of a history it takes, from runs that saw only its last items."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from mmm4rec.config import read_system, system_keys
from mmm4rec.errors import UserError
from mmm4rec.evaluation.metrics import METRICS
from mmm4rec.io import write_text
from mmm4rec.reporting.notes import notes
from mmm4rec.reporting.plot import colours_of, panels, write_below, write_png
from mmm4rec.reporting.runs import read_run, to_csv
from mmm4rec.reporting.table1 import published_users

TICKS = 10  # more would run into each other
SHOWN = ("recall@10", "ndcg@10")  # the csv has all metrics
#: the paper's text on its figure: the last items and the share of what 20 reach; it names neither metric nor system
PRINTED = {"kindle": (5, 0.97)}


def write_truncation_figure(runs: Sequence[Path], out: Path) -> None:
    """Write ``fig2.csv`` (long: dataset, system, last, metric, value, share) and ``fig2.png``.

    ``value`` is the mean over the seeds, ``share`` its share of the same with the longest histories; empty where that
    is 0.

    Args:
        runs: folders of runs on one dataset; ``max_length`` of a run's settings is the number of last items it saw.
        out: path of ``fig2.csv``.

    Raises:
        UserError: a run is not finished, or was not made with the longest histories for one of the systems.
    """
    values: dict[tuple[str, int, str], list[float]] = {}
    sizes: dict[str, int] = {}
    table = [read_run(path) for path in runs]
    for run in table:
        sizes[run["dataset"]] = run["users"]
        for metric in METRICS:
            key = (run["system"], run["config"]["settings"]["max_length"], metric)
            values.setdefault(key, []).append(run["test"][metric])
    assert len(sizes) == 1, "figure 2 is about one dataset"
    ((dataset, users),) = sizes.items()
    means = {key: statistics.fmean(v) for key, v in values.items()}
    lengths = sorted({last for _, last, _ in means})
    systems = [key for key in system_keys() if key in {system for system, _, _ in means}]
    missing = [key for key in systems if (key, lengths[-1], METRICS[0]) not in means]
    if missing:
        raise UserError(f"{out}: no run of {', '.join(missing)} with the last {lengths[-1]} items, the longest")

    def share(system: str, last: int, metric: str) -> float | None:
        whole = means[system, lengths[-1], metric]
        return means[system, last, metric] / whole if whole else None

    rows = [
        [dataset, system, last, metric, f"{means[system, last, metric]:.6f}", _text(share(system, last, metric))]
        for system in systems
        for last in lengths
        if (system, last, METRICS[0]) in means
        for metric in METRICS
    ]
    write_text(out, to_csv(["dataset", "system", "last", "metric", "value", "share"], rows))

    figure, axes = panels(1, len(SHOWN), width=4.6, height=3.4)
    for axis, metric in zip(axes[0], SHOWN, strict=True):
        for system, colour in colours_of(systems).items():
            points = [(n, 100 * s) for n in lengths if (system, n, metric) in means and (s := share(system, n, metric))]
            axis.plot(*zip(*points, strict=True) if points else ((), ()), "o-", color=colour, markersize=3.5)
            axis.lines[-1].set_label(read_system(system).name)
        # as in the tables, print stands beside ours only where the users are the same
        _finish(axis, dataset, metric, lengths, PRINTED.get(dataset) if users in published_users(dataset) else None)
    every = lengths == list(range(lengths[0], lengths[-1] + 1)) and len(lengths) > 2
    counts = f"{lengths[0]} to {lengths[-1]}" if every else ", ".join(map(str, lengths))
    seen = f"The last {counts} items of every history."
    write_below(figure, {dataset: [seen, *notes(table, dataset)]})
    write_png(out.with_suffix(".png"), figure)


def _finish(axis: Axes, dataset: str, metric: str, lengths: list[int], printed: tuple[int, float] | None) -> None:
    axis.axhline(100, color="0.6", linewidth=0.8, linestyle="--")
    if printed:
        last, share = printed
        label = f"print: {100 * share:.0f} % with the last {last}"
        axis.plot([last], [100 * share], "X", color="black", markersize=8, linestyle="none", label=label)
    axis.set_ylim(0, 1.08 * axis.dataLim.y1)  # from 0, so that noise near 100 % does not look like more
    axis.set_title(f"{dataset}: {metric}", fontsize=10)
    axis.set_xlabel("last items of a history that are seen")
    axis.set_ylabel(f"% of what {lengths[-1]} reach")
    axis.set_xticks(lengths if len(lengths) <= TICKS else [1, *range(5, lengths[-1] + 1, 5)])
    axis.legend(fontsize=8, frameon=False, loc="lower right")


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4f}"
