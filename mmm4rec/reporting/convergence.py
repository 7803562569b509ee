"""Table V: how long fine-tuning takes to reach the best validation score."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from mmm4rec.config import read_system
from mmm4rec.errors import UserError
from mmm4rec.io import write_text
from mmm4rec.reporting.published import published
from mmm4rec.reporting.runs import Run, read_run, to_csv

#: the table's quantity, and what a run calls it; the paper prints the first two
QUANTITIES = {
    "epochs_to_best": "best_epoch",
    "seconds_per_epoch": "seconds_per_epoch",
    "seconds_to_best": "seconds_to_best",
}
NOTE = """\
Means over the seeds. The best epoch is that of the validation score which stops training; training goes on for
`patience` epochs more. Seconds to the best include validation, seconds an epoch do not. An epoch is a pass over the
training rows in batches and steps of each system's own size, so epochs of different systems are not the same work;
seconds on one device can be compared. Print is of the authors' device; MISSRec's epochs there come from batches of
another size, and its seconds an epoch mix means, medians and minima."""


def write_convergence_table(runs: Sequence[Path], out: Path, *, systems: Sequence[str]) -> None:
    """Write ``table5.csv`` (a quantity a row, a system a column) and ``table5.md``.

    Args:
        runs: run folders; every dataset needs the same systems.
        out: path of ``table5.csv``.
        systems: columns, in this order.

    Raises:
        UserError: a run is missing or not finished.
    """
    table = [read_run(path) for path in runs]
    datasets = list(dict.fromkeys(run["dataset"] for run in table))
    rows = [
        [dataset, quantity, *(_mean(table, dataset, system, key, out) for system in systems)]
        for dataset in datasets
        for quantity, key in QUANTITIES.items()
    ]
    write_text(out, to_csv(["dataset", "quantity", *systems], rows))
    write_text(out.with_suffix(".md"), _markdown(table, rows, systems))


def _mean(table: list[Run], dataset: str, system: str, key: str, out: Path) -> str:
    values = [float(run[key]) for run in table if (run["dataset"], run["system"]) == (dataset, system)]
    if not values:
        raise UserError(f"{out}: no finished run of {system} on {dataset}")
    return f"{statistics.fmean(values):.2f}"


def _markdown(table: list[Run], rows: list[list[str]], systems: Sequence[str]) -> str:
    printed = published(5)
    devices = sorted({run["device"] for run in table})
    lines = ["# Table V: epochs and seconds to the best validation score", "", NOTE, ""]
    lines += [f"Device: {', '.join(devices)}.", ""]
    lines += ["| dataset | quantity | | " + " | ".join(read_system(s).name for s in systems) + " |"]
    lines += ["|---|---|---|" + "---:|" * len(systems)]
    for dataset, quantity, *values in rows:
        lines.append(f"| {dataset} | {quantity.replace('_', ' ')} | ours | {' | '.join(values)} |")
        print_cells = [printed.get((dataset, system, quantity)) for system in systems]
        if any(print_cells):
            cells = " | ".join("" if v is None else f"{v:g}" for v in print_cells)
            lines.append(f"| | | print | {cells} |")
    return "\n".join(lines) + "\n"
