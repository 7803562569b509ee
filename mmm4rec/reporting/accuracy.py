"""Tables II to IV: recall and ndcg of every system on every target, means over the seeds, print beside ours."""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmm4rec.config import others, read_system
from mmm4rec.evaluation.metrics import METRICS, per_user
from mmm4rec.evaluation.significance import bootstrap_interval
from mmm4rec.io import write_text
from mmm4rec.reporting.comparison import COMPARISON, against_best, correct, enough_draws, explain, mark, users_of
from mmm4rec.reporting.notes import bullets, notes, own_settings
from mmm4rec.reporting.published import Cell, comparable, logged, print_cell, published, slips
from mmm4rec.reporting.runs import Run, mean_and_spread, read_run, require_runs, rounded, to_csv

OURS = {2: "mmm4rec", 3: "mmm4rec_noid", 4: "mmm4rec"}
TEST_COLUMNS = ("dataset", "metric", *COMPARISON)
#: a gain that the paper puts forward: table, dataset, metric
HEADLINE = (2, "pantry", "ndcg@10")
OVER_ALL = "Improvements of print are over all systems of its own table."
QUOTED = (
    "Most of print's baselines are quoted from earlier papers with other encoders; only Mamba4Rec, TiM4Rec, their text "
    "variants, BSARec, M3Rec and MMSRec look like runs on these features."
)
UNKNOWN_USERS = "How many users print's Table IV is about is not said: its items may be others than ours."
UNTESTED = (
    "Nothing is tested: {name} or another system to hold it against is no column here. `compare` in the configuration "
    "names the system that is held against the best other one."
)
TITLES = {
    2: "Table II: systems with item ids",
    3: "Table III: systems without item ids",
    4: "Table IV: items with an image only",
}
COSTS = ("epochs", "best_epoch", "seconds", "seconds_per_epoch", "parameters", "peak_memory_mib")


def write_accuracy_table(
    number: int,
    runs: Sequence[Path],
    out: Path,
    *,
    systems: Sequence[str],
    paper: Collection[str] = (),
    compare: str | None = None,
) -> None:
    """Write ``tableN.csv`` (wide), ``tableN_runs.csv`` (long, with costs), ``tableN_tests.csv`` and ``tableN.md``.

    Args:
        number: 2, 3 or 4.
        runs: run folders; every dataset needs the same systems.
        out: path of ``tableN.csv``.
        systems: columns, in this order.
        paper: for Table IV, the datasets that print may stand beside, see ``comparable``.
        compare: the system that is held against the best other one; MMM4Rec, in its form of that table, if None or if
            it is no column.

    Raises:
        UserError: a run is missing or not finished.
    """
    table = [read_run(path) for path in runs]
    require_runs(table, systems, out)
    ours = compare if compare and compare in systems else OURS[number]
    tests = compare_all(table, ours)
    printed = comparable(number, _users(table), paper)
    datasets = list(dict.fromkeys(run["dataset"] for run in table))
    wide = []
    for dataset in datasets:
        for metric in METRICS:
            means = {s: statistics.fmean(_values(table, dataset, s, metric)) for s in systems}
            wide.append([dataset, metric, *(f"{v:.6f}" for v in means.values()), improvement(means, ours)])
    write_text(out, to_csv(["dataset", "metric", *systems, "improvement"], wide))
    write_text(out.with_name(f"{out.stem}_runs.csv"), _runs_csv(number, table, printed))
    write_text(out.with_name(f"{out.stem}_tests.csv"), to_csv(TEST_COLUMNS, [rounded(test.values()) for test in tests]))
    write_text(out.with_suffix(".md"), _markdown(number, table, datasets, systems, ours, tests, printed))


def gain(means: Mapping[str, float], ours: str) -> tuple[float, str] | None:
    """100 * (ours / best other - 1), in percent, and the best other system; None where there is nothing to compare.

    >>> gain({"sasrec": 0.10, "pop": 0.02, "mmm4rec": 0.08}, "mmm4rec")
    (-20.0, 'sasrec')
    """
    best = max(others(means, ours), key=means.__getitem__, default=None)
    if ours not in means or best is None or means[best] <= 0:
        return None
    return 100 * means[ours] / means[best] - 100, best


def improvement(means: Mapping[str, float], ours: str) -> str:
    """The gain over the best other system in percent; ``-`` where it is not positive or there is nothing to compare.

    >>> improvement({"sasrec": 0.10, "pop": 0.02, "mmm4rec": 0.12}, "mmm4rec")
    '20.00'
    """
    found = gain(means, ours)
    return f"{found[0]:.2f}" if found and found[0] > 0 else "-"


def compare_all(table: Sequence[Run], ours: str) -> list[dict[str, Any]]:
    """Ours against the best other system on every dataset and metric.

    Returns:
        a row a comparison, with the keys ``TEST_COLUMNS``, corrected for all comparisons of the table.

    Raises:
        UserError: two runs rank other users.
    """
    users = users_of(table)
    draws = enough_draws(len(users), len(others({run["system"] for run in table}, ours)))
    rows = [
        {"dataset": dataset, "metric": metric, **found}
        for (dataset, metric), systems in users.items()
        if (found := against_best(systems, ours, draws=draws))
    ]
    correct(rows)
    return rows


def _values(table: Iterable[Run], dataset: str, system: str, metric: str) -> list[float]:
    return [run["test"][metric] for run in table if run["dataset"] == dataset and run["system"] == system]


def _runs_csv(number: int, table: list[Run], printed: Mapping[Cell, float]) -> str:
    rows = [
        [run["dataset"], run["system"], run["seed"], metric, f"{run['test'][metric]:.6f}"]
        + [printed.get((run["dataset"], run["system"], metric), "")]
        + [f"{bound:.6f}" for bound in bootstrap_interval(per_user(metric, run["ranks"]))]
        + [_short(run[cost]) for cost in COSTS]
        + [logged(number, printed, (run["dataset"], run["system"], metric))]
        for run in table
        for metric in METRICS
    ]
    return to_csv(["dataset", "system", "seed", "metric", "value", "published", "low", "high", *COSTS, "logged"], rows)


def _users(table: Iterable[Run]) -> dict[str, int]:
    return {run["dataset"]: run["users"] for run in table}


def _short(value: float) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _markdown(
    number: int,
    table: list[Run],
    datasets: list[str],
    systems: Sequence[str],
    ours: str,
    tests: list[dict[str, Any]],
    printed: Mapping[Cell, float],
) -> str:
    names = [read_system(s).name for s in systems]
    marks = {(test["dataset"], test["metric"]): mark(test) for test in tests}
    lines, below = [f"# {TITLES[number]}", ""], []
    measured = None  # our gain where the paper puts its own forward
    for dataset in datasets:
        users = _users(table)[dataset]
        about = f"{users} users ranked; mean over the seeds (± standard deviation where there are several)."
        lines += [f"## {dataset}", "", about, "", *bullets(notes(table, dataset)), ""]
        lines += ["| metric | | " + " | ".join(names) + " | improvement, % |", "|---|---|" + "---:|" * (len(names) + 1)]
        for metric in METRICS:
            values = {s: _values(table, dataset, s, metric) for s in systems}
            means = {s: statistics.fmean(v) for s, v in values.items()}
            best = max(means.values())
            cells = [_cell(values[s], best) for s in systems]
            found = gain(means, ours)
            better = _percent(found) + marks.get((dataset, metric), "")
            lines.append(f"| {metric} | ours | {' | '.join(cells)} | {better} |")
            print_cells = [print_cell(number, printed, (dataset, s, metric)) for s in systems]
            if any(print_cells):
                in_print = gain(_of(printed, dataset, metric), ours)
                lines.append(f"| | print | {' | '.join(print_cells)} | {_percent(in_print)} |")
            if (number, dataset, metric) == HEADLINE and _of(printed, dataset, metric):
                measured = gain(means, OURS[number])
        lines.append("")
    if tests:
        differ = f"{read_system(ours).name} and the best other system differ"
        lines += [explain(tests, differ), ""]
    else:
        lines += [UNTESTED.format(name=read_system(ours).name), ""]
    lines += own_settings(table)
    if printed:
        below += [_claim(measured)] * (number == HEADLINE[0])
        below += [OVER_ALL, QUOTED if number in (2, 3) else UNKNOWN_USERS]
    below += slips(number, printed, systems)
    lines += [line for text in below for line in (text, "")]
    return "\n".join(lines).rstrip() + "\n"


def _percent(found: tuple[float, str] | None) -> str:
    return f"{found[0]:.2f}" if found else "-"


def _of(printed: Mapping[Cell, float], dataset: str, metric: str) -> dict[str, float]:
    """What is printed of a dataset and metric, by system: of all the paper's systems, not of the configured ones."""
    return {s: value for (d, s, m), value in printed.items() if (d, m) == (dataset, metric)}


def _claim(measured: tuple[float, str] | None) -> str:
    """The gain that the paper puts forward, as it follows from print's own table, beside ours if there is any."""
    number, dataset, metric = HEADLINE
    in_print = gain(_of(published(number), dataset, metric), OURS[number])
    assert in_print, HEADLINE
    here = "Not measured here"
    if measured:
        here = f"Measured here: {measured[0]:+.2f} % (over {read_system(measured[1]).name})"
    return (
        f"The paper puts forward {read_system(OURS[number]).name}'s gain over the best other system in {metric} on "
        f"{dataset}: {in_print[0]:+.2f} % by print's own table (over {read_system(in_print[1]).name}). {here}."
    )


def _cell(values: list[float], best: float) -> str:
    text = mean_and_spread(values, 4)
    return f"**{text}**" if statistics.fmean(values) == best else text
