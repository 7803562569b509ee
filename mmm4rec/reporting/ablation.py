"""Table VI: MMM4Rec with one of its parts changed or left out at a time."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from mmm4rec.config import read_system, system_keys
from mmm4rec.evaluation.metrics import METRICS
from mmm4rec.io import write_text
from mmm4rec.reporting.published import comparable, print_cell, slips
from mmm4rec.reporting.runs import mean_and_spread, read_run, to_csv


def write_ablation_table(runs: Sequence[Path], out: Path, *, systems: Sequence[str]) -> None:
    """Write ``table6.csv`` (long: variant, dataset, metric, value) and ``table6.md``.

    Args:
        runs: run folders.
        out: path of ``table6.csv``.
        systems: lines, in this order.

    Raises:
        UserError: a run is not finished.
    """
    table = [read_run(path) for path in runs]
    users = {run["dataset"]: run["users"] for run in table}
    values: dict[tuple[str, str, str], list[float]] = {}
    for run in table:
        for metric in METRICS:
            values.setdefault((run["system"], run["dataset"], metric), []).append(run["test"][metric])
    rows = [
        [system, dataset, metric, f"{statistics.fmean(values[system, dataset, metric]):.6f}"]
        for system in systems
        for dataset in users
        for metric in METRICS
    ]
    write_text(out, to_csv(["variant", "dataset", "metric", "value"], rows))

    lines_of_table = [key for key in system_keys() if 6 in read_system(key).tables]  # numbered as in print
    printed = comparable(6, users)
    lines = ["# Table VI: variants of MMM4Rec", ""]
    lines += ["Means over the seeds (± standard deviation where there are several).", ""]
    for dataset, number in users.items():
        lines += [f"## {dataset}", "", f"{number} users ranked.", ""]
        lines += ["| variant | | " + " | ".join(METRICS) + " |", "|---|---|" + "---:|" * len(METRICS)]
        for system in systems:
            name = f"({lines_of_table.index(system)}) {read_system(system).name}"
            cells = [mean_and_spread(values[system, dataset, metric], 4) for metric in METRICS]
            lines.append(f"| {name} | ours | {' | '.join(cells)} |")
            print_cells = [print_cell(6, printed, (dataset, system, metric)) for metric in METRICS]
            if any(print_cells):
                lines.append(f"|  | print | {' | '.join(print_cells)} |")
        lines.append("")
    lines += [line for text in slips(6, printed, systems) for line in (text, "")]
    write_text(out.with_suffix(".md"), "\n".join(lines).rstrip() + "\n")
