"""Table VI: MMM4Rec with one of its parts changed or left out at a time."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmm4rec.config import read_system, system_keys
from mmm4rec.evaluation.metrics import METRICS
from mmm4rec.evaluation.significance import holm
from mmm4rec.io import write_text
from mmm4rec.reporting.accuracy import DAGGER, LEVEL, LIMITS, dagger, enough_draws, paired_test, users_of
from mmm4rec.reporting.published import comparable, print_cell, slips
from mmm4rec.reporting.runs import Run, mean_and_spread, read_run, require_runs, rounded, to_csv

WHOLE = "mmm4rec"  # what the variants are compared with
TEST_COLUMNS = ("dataset", "metric", "system", "other", "difference", "low", "high", "p", "p_holm")


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
    marked = {(t["system"], t["dataset"], t["metric"]) for t in tests if t["p_holm"] < LEVEL}
    write_text(out.with_name(f"{out.stem}_tests.csv"), to_csv(TEST_COLUMNS, [rounded(t.values()) for t in tests]))

    lines_of_table = [key for key in system_keys() if 6 in read_system(key).tables]  # numbered as in print
    printed = comparable(6, users)
    lines = ["# Table VI: variants of MMM4Rec", ""]
    lines += ["Means over the seeds (± standard deviation where there are several).", ""]
    for dataset, number in users.items():
        lines += [f"## {dataset}", "", f"{number} users ranked.", ""]
        lines += ["| variant | | " + " | ".join(METRICS) + " |", "|---|---|" + "---:|" * len(METRICS)]
        for system in systems:
            name = f"({lines_of_table.index(system)}) {read_system(system).name}"
            cells = [
                mean_and_spread(values[system, dataset, m], 4) + (DAGGER if (system, dataset, m) in marked else "")
                for m in METRICS
            ]
            lines.append(f"| {name} | ours | {' | '.join(cells)} |")
            print_cells = [print_cell(6, printed, (dataset, system, metric)) for metric in METRICS]
            if any(print_cells):
                lines.append(f"|  | print | {' | '.join(print_cells)} |")
        lines.append("")
    if tests:
        lines += [
            f"{dagger(marked)} differs from {read_system(WHOLE).name}: paired permutation test over the users, "
            f"p < {LEVEL} after Holm's correction for {len(tests)} comparisons. {LIMITS}",
            "",
        ]
    lines += [line for text in slips(6, printed, systems) for line in (text, "")]
    write_text(out.with_suffix(".md"), "\n".join(lines).rstrip() + "\n")


def compare_variants(table: Sequence[Run]) -> list[dict[str, Any]]:
    """Every variant against the whole system, on every dataset and metric.

    Returns:
        a row a comparison, with the keys ``TEST_COLUMNS``; ``p_holm`` is corrected for all of them.

    Raises:
        UserError: two runs rank other users.
    """
    pairs = [
        (dataset, metric, variant, values[variant], values[WHOLE])
        for (dataset, metric), values in users_of(table).items()
        for variant in values
        if WHOLE in values and variant != WHOLE
    ]
    draws = enough_draws(len(pairs), 1)
    found = [paired_test(values, whole, draws=draws) for *_, values, whole in pairs]
    corrected = holm([p for *_, p in found])
    return [
        dict(zip(TEST_COLUMNS, (*names, WHOLE, *test, p), strict=True))
        for (*names, _, _), test, p in zip(pairs, found, corrected, strict=True)
    ]
