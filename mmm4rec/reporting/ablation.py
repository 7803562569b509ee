"""Table VI: MMM4Rec with one of its parts changed or left out at a time."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmm4rec.config import read_system, system_keys
from mmm4rec.evaluation.metrics import METRICS
from mmm4rec.io import write_text
from mmm4rec.reporting.comparison import TEST, correct, enough_draws, explain, mark, paired_test, users_of
from mmm4rec.reporting.notes import bullets, notes, own_settings
from mmm4rec.reporting.published import comparable, print_cell, slips
from mmm4rec.reporting.runs import Run, mean_and_spread, read_run, require_runs, rounded, to_csv

WHOLE = "mmm4rec"  # what the variants are compared with
TEST_COLUMNS = ("dataset", "metric", "system", "other", *TEST, "p_holm")


def write_ablation_table(runs: Sequence[Path], out: Path, *, systems: Sequence[str]) -> None:
    """Write ``table6.csv`` (long: variant, dataset, metric, value), ``table6_tests.csv`` and ``table6.md``.

    Args:
        runs: run folders.
        out: path of ``table6.csv``.
        systems: lines, in this order.

    Raises:
        UserError: a run is missing or not finished, or two rank other users.
    """
    table = [read_run(path) for path in runs]
    require_runs(table, systems, out)
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
    tests = compare_variants(table)
    marks = {(t["system"], t["dataset"], t["metric"]): mark(t) for t in tests}
    write_text(out.with_name(f"{out.stem}_tests.csv"), to_csv(TEST_COLUMNS, [rounded(t.values()) for t in tests]))

    lines_of_table = [key for key in system_keys() if 6 in read_system(key).tables]  # numbered as in print
    printed = comparable(6, users)
    whole = read_system(WHOLE).name
    lines = [f"# Table VI: variants of {whole}", ""]
    for dataset, number in users.items():
        about = f"{number} users ranked; means over the seeds (± standard deviation where there are several)."
        lines += [f"## {dataset}", "", about, "", *bullets(notes(table, dataset)), ""]
        lines += ["| variant | | " + " | ".join(METRICS) + " |", "|---|---|" + "---:|" * len(METRICS)]
        for system in systems:
            name = f"({lines_of_table.index(system)}) {read_system(system).name.removeprefix(f'{whole} ')}"
            cells = [
                mean_and_spread(values[system, dataset, m], 4) + marks.get((system, dataset, m), "") for m in METRICS
            ]
            lines.append(f"| {name} | ours | {' | '.join(cells)} |")
            print_cells = [print_cell(6, printed, (dataset, system, metric)) for metric in METRICS]
            if any(print_cells):
                lines.append(f"|  | print | {' | '.join(print_cells)} |")
        lines.append("")
    if tests:
        lines += [explain(tests, f"differs from {whole}"), ""]
    lines += own_settings(table)
    lines += [line for text in slips(6, printed, systems) for line in (text, "")]
    write_text(out.with_suffix(".md"), "\n".join(lines).rstrip() + "\n")


def compare_variants(table: Sequence[Run]) -> list[dict[str, Any]]:
    """Every variant against the whole system, on every dataset and metric.

    Returns:
        a row a comparison, with the keys ``TEST_COLUMNS``; ``p_holm`` is corrected for all of them.

    Raises:
        UserError: two runs rank other users.
    """
    users = users_of(table)
    pairs = [
        (dataset, metric, variant)
        for (dataset, metric), systems in users.items()
        for variant in systems
        if WHOLE in systems and variant != WHOLE
    ]
    draws = enough_draws(len(pairs), 1)
    rows = [
        {
            "dataset": dataset,
            "metric": metric,
            "system": variant,
            "other": WHOLE,
            **paired_test(users[dataset, metric], variant, WHOLE, draws=draws),
        }
        for dataset, metric, variant in pairs
    ]
    correct(rows)
    return rows
