"""Table VI: MMM4Rec with one of its parts changed or left out at a time."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from mmm4rec.config import read_system, system_keys
from mmm4rec.evaluation.metrics import METRICS
from mmm4rec.io import write_text
from mmm4rec.reporting.published import published
from mmm4rec.reporting.runs import read_run, to_csv
from mmm4rec.reporting.table1 import published_users


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
    means = {key: statistics.fmean(v) for key, v in values.items()}
    rows = [
        [system, dataset, metric, f"{means[system, dataset, metric]:.6f}"]
        for system in systems
        for dataset in users
        for metric in METRICS
    ]
    write_text(out, to_csv(["variant", "dataset", "metric", "value"], rows))

    lines_of_table = [key for key in system_keys() if 6 in read_system(key).tables]  # numbered as in print
    printed = {(s, d, m): value for (d, s, m), value in published(6).items()}
    lines = ["# Table VI: variants of MMM4Rec", "", "Means over the seeds.", ""]
    for dataset, number in users.items():
        lines += [f"## {dataset}", "", f"{number} users ranked.", ""]
        lines += ["| variant | | " + " | ".join(METRICS) + " |", "|---|---|" + "---:|" * len(METRICS)]
        for system in systems:
            name = f"({lines_of_table.index(system)}) {read_system(system).name}"
            sources = [("ours", name, means)]
            if number in published_users(dataset):
                sources.append(("print", "", printed))
            for source, label, known in sources:
                cells = [f"{known[key]:.4f}" if (key := (system, dataset, m)) in known else "" for m in METRICS]
                lines.append(f"| {label} | {source} | {' | '.join(cells)} |")
        lines.append("")
    write_text(out.with_suffix(".md"), "\n".join(lines).rstrip() + "\n")
