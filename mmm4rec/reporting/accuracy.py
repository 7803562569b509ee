"""Tables II to IV: recall and ndcg of every system on every target, means over the seeds, print beside ours."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmm4rec.config import read_system
from mmm4rec.errors import UserError
from mmm4rec.evaluation.metrics import METRICS, per_user
from mmm4rec.evaluation.significance import bootstrap_interval, holm, paired_p_value
from mmm4rec.io import write_text
from mmm4rec.reporting.published import SLIPS, published
from mmm4rec.reporting.runs import Run, read_run, to_csv
from mmm4rec.reporting.table1 import published_users

OURS = {2: "mmm4rec", 3: "mmm4rec_noid", 4: "mmm4rec"}
LEVEL = 0.05  # of significance
DAGGER = "†"
TEST_COLUMNS = ("dataset", "metric", "system", "other", "difference", "low", "high", "p", "p_holm")
TITLES = {
    2: "Table II: systems with item ids",
    3: "Table III: systems without item ids",
    4: "Table IV: items with an image only",
}
COSTS = ("epochs", "best_epoch", "seconds", "seconds_per_epoch", "parameters", "peak_memory_mib")

#: settings that make a column another thing than its name says
CAVEATS = (
    (
        "target_time_in_row",
        True,
        "**The time of the target is in the rows of {}** (preset `released`): not comparable.",
    ),
    ("mask_padded_gaps", False, "The gaps of padding count as times in {} (preset `released`)."),
)


def write_accuracy_table(number: int, runs: Sequence[Path], out: Path, *, systems: Sequence[str]) -> None:
    """Write ``tableN.csv`` (wide), ``tableN_runs.csv`` (long, with costs), ``tableN_tests.csv`` and ``tableN.md``.

    Args:
        number: 2, 3 or 4.
        runs: run folders; every dataset needs the same systems.
        out: path of ``tableN.csv``.
        systems: columns, in this order.

    Raises:
        UserError: a run is missing or not finished.
    """
    table = [read_run(path) for path in runs]
    tests = compare(table, OURS[number])
    datasets = list(dict.fromkeys(run["dataset"] for run in table))
    wide = []
    for dataset in datasets:
        for metric in METRICS:
            means = {s: _mean(_values(table, dataset, s, metric)) for s in systems}
            missing = [s for s, mean in means.items() if mean is None]
            if missing:
                raise UserError(f"{out}: no finished run of {', '.join(missing)} on {dataset}")
            numbers = {s: mean for s, mean in means.items() if mean is not None}
            wide.append([dataset, metric, *(f"{v:.6f}" for v in numbers.values()), improvement(numbers, OURS[number])])
    write_text(out, to_csv(["dataset", "metric", *systems, "improvement"], wide))
    write_text(out.with_name(f"{out.stem}_runs.csv"), _runs_csv(number, table))
    write_text(
        out.with_name(f"{out.stem}_tests.csv"), to_csv(TEST_COLUMNS, [_rounded(test.values()) for test in tests])
    )
    write_text(out.with_suffix(".md"), _markdown(number, table, datasets, systems, tests))


def improvement(means: dict[str, float], ours: str) -> str:
    """100 * (ours / best other - 1), in percent; ``-`` where it is not positive or there is nothing to compare.

    >>> improvement({"sasrec": 0.10, "pop": 0.02, "mmm4rec": 0.12}, "mmm4rec")
    '20.00'
    """
    others = [v for s, v in means.items() if s != ours and not s.startswith("mmm4rec")]
    best = max(others, default=0.0)
    if ours not in means or best <= 0 or means[ours] <= best:
        return "-"
    return f"{100 * (means[ours] / best - 1):.2f}"


def compare(table: Sequence[Run], ours: str) -> list[dict[str, Any]]:
    """Ours against the best other system on every dataset and metric, user by user, the values averaged over the seeds.

    Returns:
        a row a comparison, with the keys ``TEST_COLUMNS``: the difference of the means, its bootstrap interval (95 %),
        the p of the paired permutation test, and the same corrected for all comparisons of the table (Holm).
    """
    rows: list[dict[str, Any]] = []
    for dataset in dict.fromkeys(run["dataset"] for run in table):
        runs = [run for run in table if run["dataset"] == dataset]
        for metric in METRICS:
            values: dict[str, list[Any]] = {}
            for run in runs:
                values.setdefault(run["system"], []).append(per_user(metric, run["ranks"]))
            users = {system: np.mean(v, axis=0) for system, v in values.items()}
            others = [system for system in users if not system.startswith("mmm4rec")]
            if ours not in users or not others:
                continue
            best = max(others, key=lambda system: float(users[system].mean()))
            difference = users[ours] - users[best]
            low, high = bootstrap_interval(difference)
            p = paired_p_value(users[ours], users[best])
            rows.append(
                dict(zip(TEST_COLUMNS, (dataset, metric, ours, best, difference.mean(), low, high, p), strict=False))
            )
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows


def _values(table: Iterable[Run], dataset: str, system: str, metric: str) -> list[float]:
    return [run["test"][metric] for run in table if run["dataset"] == dataset and run["system"] == system]


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _rounded(values: Iterable[Any]) -> list[str]:
    return [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]


def _runs_csv(number: int, table: list[Run]) -> str:
    printed = _comparable(number, table)
    rows = [
        [run["dataset"], run["system"], run["seed"], metric, f"{run['test'][metric]:.6f}"]
        + [printed.get((run["dataset"], run["system"], metric), "")]
        + [f"{bound:.6f}" for bound in bootstrap_interval(per_user(metric, run["ranks"]))]
        + [_short(run[cost]) for cost in COSTS]
        for run in table
        for metric in METRICS
    ]
    return to_csv(["dataset", "system", "seed", "metric", "value", "published", "low", "high", *COSTS], rows)


def _comparable(number: int, table: list[Run]) -> dict[tuple[str, str, str], float]:
    """Printed values of the datasets that have the paper's users; others of the same name are other data.

    How many users Table IV is about is not printed; and links die.
    """
    sizes = {run["dataset"]: run["users"] for run in table}
    same = {dataset for dataset, users in sizes.items() if number == 4 or users in published_users(dataset)}
    return {cell: value for cell, value in published(number).items() if cell[0] in same}


def _short(value: float) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _markdown(
    number: int, table: list[Run], datasets: list[str], systems: Sequence[str], tests: list[dict[str, Any]]
) -> str:
    names = [read_system(s).name for s in systems]
    printed = _comparable(number, table)
    significant = {(test["dataset"], test["metric"]) for test in tests if test["p_holm"] < LEVEL}
    lines = [f"# {TITLES[number]}", ""]
    for dataset in datasets:
        lines += [f"## {dataset}", "", *_notes(table, dataset), ""]
        lines += ["| metric | | " + " | ".join(names) + " | improvement, % |", "|---|---|" + "---:|" * (len(names) + 1)]
        for metric in METRICS:
            values = {s: _values(table, dataset, s, metric) for s in systems}
            means = {s: statistics.fmean(v) for s, v in values.items()}
            best = max(means.values())
            cells = [_cell(values[s], best) for s in systems]
            mark = DAGGER if (dataset, metric) in significant else ""
            lines.append(f"| {metric} | ours | {' | '.join(cells)} | {improvement(means, OURS[number])}{mark} |")
            print_cells = [_printed(number, printed, dataset, s, metric) for s in systems]
            if any(print_cells):
                lines.append(f"| | print | {' | '.join(print_cells)} | |")
        lines.append("")
    if significant:
        lines.append(
            f"{DAGGER} {read_system(OURS[number]).name} and the best other system differ: paired permutation test over "
            f"the users, p < {LEVEL} after Holm's correction for {len(tests)} comparisons.\n"
        )
    slips = [text for (n, *cell), text in SLIPS.items() if n == number and tuple(cell) in printed]
    lines += [f"\\* a slip of print: {text}." for text in slips]
    return "\n".join(lines).rstrip() + "\n"


def _cell(values: list[float], best: float) -> str:
    mean = statistics.fmean(values)
    text = f"{mean:.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")
    return f"**{text}**" if mean == best else text


def _printed(number: int, printed: dict[tuple[str, str, str], float], dataset: str, system: str, metric: str) -> str:
    value = printed.get((dataset, system, metric))
    mark = "\\*" if (number, dataset, system, metric) in SLIPS else ""
    return "" if value is None else f"{value:.4f}{mark}"


def _notes(table: list[Run], dataset: str) -> list[str]:
    """What a reader must know before comparing: seeds, users, time, pre-training, switches that leak or mask."""
    runs = [run for run in table if run["dataset"] == dataset]
    seeds = {s: sorted({r["seed"] for r in runs if r["system"] == s}) for s in dict.fromkeys(r["system"] for r in runs)}
    notes = [f"{runs[0]['users']} users ranked; mean over the seeds (± standard deviation where there are several)."]
    notes.append("Seeds: " + "; ".join(f"{s} {', '.join(map(str, v))}" for s, v in seeds.items()) + ".")
    timed = [r for r in runs if "time" in r["config"]["reads"]]
    if timed and not any(r["time"] for r in timed):
        notes.append("time: off (the domain has no timestamps, or the settings leave them out).")
    scratch = sorted({r["system"] for r in runs if not r["config"]["pretrained"]})
    carried = sorted({r["system"] for r in runs if r["config"]["pretrained"]})
    notes.append(f"From scratch: {', '.join(scratch) or 'none'}; pre-trained: {', '.join(carried) or 'none'}.")
    for key, bad, note in CAVEATS:
        systems = sorted({r["system"] for r in runs if r["config"]["settings"].get(key) == bad})
        if systems:
            notes.append(note.format(", ".join(systems)))
    changed = {s: _changed(next(r["config"] for r in runs if r["system"] == s)) for s in seeds}
    if any(changed.values()):
        notes.append(
            "Set other than in `config/systems`: " + "; ".join(f"{s} {c}" for s, c in changed.items() if c) + "."
        )
    if any(r["config"]["mask_seen"] for r in runs):
        notes.append("Items of the history are no candidates (`mask_seen: true`).")
    return notes


def _changed(config: dict[str, Any]) -> str:
    """What of a run's settings differs from its system's file, as ``key value (the file's)``."""
    file = read_system(config["system"])
    pairs = [(key, value, file.settings.get(key)) for key, value in config["settings"].items()]
    if config["stage"] and file.finetune:
        own = file.finetune.model_dump()
        pairs += [(key, value, own.get(key)) for key, value in config["stage"].items()]
    return ", ".join(f"{key} {value} ({own})" for key, value, own in pairs if value != own)
