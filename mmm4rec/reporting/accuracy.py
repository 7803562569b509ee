"""Tables II to IV: recall and ndcg of every system on every target, means over the seeds, print beside ours."""

import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmm4rec.config import read_system
from mmm4rec.errors import UserError
from mmm4rec.evaluation.metrics import METRICS, per_user
from mmm4rec.evaluation.significance import DRAWS, Values, bootstrap_interval, holm, paired_p_value
from mmm4rec.io import write_text
from mmm4rec.reporting.published import Cell, comparable, logged, print_cell, slips
from mmm4rec.reporting.runs import Run, mean_and_spread, others, read_run, require_runs, rounded, to_csv

OURS = {2: "mmm4rec", 3: "mmm4rec_noid", 4: "mmm4rec"}
LEVEL = 0.05  # of significance
DAGGER = "†"
COMPARISON = ("system", "other", "others", "difference", "low", "high", "p", "p_holm")
TEST_COLUMNS = ("dataset", "metric", *COMPARISON)
PICKED = "Where the other is ahead, its p counts as often as there are other systems: it was picked as their best."
LIMITS = (
    "The test is of these trained runs: what other seeds would change is not in it. The comparisons of a table are "
    "corrected together, so that the same two systems may be marked in one table and not in another."
)
HITS = 50  # draws beyond a p that is just significant after all corrections: it is known to 14 %
#: a gain that the paper puts forward: table, dataset, metric
HEADLINE = (2, "pantry", "ndcg@10")
OVER_ALL = "Improvements of print are over all systems of its own table."
QUOTED = (
    "Most of print's baselines are quoted from earlier papers with other encoders; only Mamba4Rec, TiM4Rec, their text "
    "variants, BSARec, M3Rec and MMSRec look like runs on these features."
)
UNKNOWN_USERS = "How many users print's Table IV is about is not said: its items may be others than ours."
TITLES = {
    2: "Table II: systems with item ids",
    3: "Table III: systems without item ids",
    4: "Table IV: items with an image only",
}
COSTS = ("epochs", "best_epoch", "seconds", "seconds_per_epoch", "parameters", "peak_memory_mib")

#: settings that make a column another thing than its name says: MMM4Rec's, or a defect, and what is to be said
CAVEATS = (
    (("target_time_in_row", True), "target_time", "**The time of the target is in the rows of {}**: not comparable."),
    (("mask_padded_gaps", False), "padded_gaps", "The gaps of padding count as times in {}."),
)


def write_accuracy_table(
    number: int, runs: Sequence[Path], out: Path, *, systems: Sequence[str], paper: Collection[str] = ()
) -> None:
    """Write ``tableN.csv`` (wide), ``tableN_runs.csv`` (long, with costs), ``tableN_tests.csv`` and ``tableN.md``.

    Args:
        number: 2, 3 or 4.
        runs: run folders; every dataset needs the same systems.
        out: path of ``tableN.csv``.
        systems: columns, in this order.
        paper: for Table IV, the datasets that print may stand beside, see ``comparable``.

    Raises:
        UserError: a run is missing or not finished.
    """
    table = [read_run(path) for path in runs]
    require_runs(table, systems, out)
    tests = compare(table, OURS[number])
    printed = comparable(number, _users(table), paper)
    datasets = list(dict.fromkeys(run["dataset"] for run in table))
    wide = []
    for dataset in datasets:
        for metric in METRICS:
            means = {s: statistics.fmean(_values(table, dataset, s, metric)) for s in systems}
            wide.append([dataset, metric, *(f"{v:.6f}" for v in means.values()), improvement(means, OURS[number])])
    write_text(out, to_csv(["dataset", "metric", *systems, "improvement"], wide))
    write_text(out.with_name(f"{out.stem}_runs.csv"), _runs_csv(number, table, printed))
    write_text(out.with_name(f"{out.stem}_tests.csv"), to_csv(TEST_COLUMNS, [rounded(test.values()) for test in tests]))
    write_text(out.with_suffix(".md"), _markdown(number, table, datasets, systems, tests, printed))


def gain(means: Mapping[str, float], ours: str) -> tuple[float, str] | None:
    """100 * (ours / best other - 1), in percent, and the best other system; None where there is nothing to compare.

    >>> gain({"sasrec": 0.10, "pop": 0.02, "mmm4rec": 0.08}, "mmm4rec")
    (-20.0, 'sasrec')
    """
    best = max(others(means), key=means.__getitem__, default=None)
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


def against_best(users: Mapping[str, Values], ours: str, *, draws: int = DRAWS) -> dict[str, Any] | None:
    """Ours against the best other system, user by user.

    Args:
        users: [U] a metric's values of every user, by system.
        ours: a system.
        draws: of the permutation test.

    Returns:
        ``COMPARISON`` but its last: which is the best other system and of how many, the difference of the means, its
        bootstrap interval (95 %) and the p of the paired permutation test; None where there is nothing to compare.
    """
    rivals = others(users)
    if ours not in users or not rivals:
        return None
    best = max(rivals, key=lambda system: float(users[system].mean()))
    values = (ours, best, len(rivals), *paired_test(users[ours], users[best], draws=draws))
    return dict(zip(COMPARISON, values, strict=False))


def paired_test(one: Values, other: Values, *, draws: int) -> tuple[float, float, float, float]:
    """Difference of the means, its bootstrap interval (95 %), and the p of the paired permutation test.

    Args:
        one: [U] a metric's values of every user.
        other: [U] of another system.
        draws: of the permutation test.
    """
    low, high = bootstrap_interval(one - other)
    return float((one - other).mean()), low, high, paired_p_value(one, other, draws=draws)


def correct(rows: Sequence[dict[str, Any]]) -> None:
    """Give every comparison ``p_holm``: its p, corrected for the search for the other system and for all comparisons.

    Where the other is ahead, it was picked as the best of K that all had their chance to be, and its p counts K times
    (Bonferroni). Where ours is ahead, nothing was picked in favour of the difference. Then Holm.
    """
    picked = [min(1.0, row["p"] * (row["others"] if row["difference"] < 0 else 1)) for row in rows]
    for row, corrected in zip(rows, holm(picked), strict=True):
        row["p_holm"] = corrected


def compare(table: Sequence[Run], ours: str) -> list[dict[str, Any]]:
    """Ours against the best other system on every dataset and metric, the values of a user averaged over the seeds.

    Returns:
        a row a comparison, with the keys ``TEST_COLUMNS``, corrected for all comparisons of the table.

    Raises:
        UserError: two runs rank other users.
    """
    rows = []
    users = users_of(table)
    draws = enough_draws(len(users), len(others({run["system"] for run in table})))
    for (dataset, metric), values in users.items():
        if found := against_best(values, ours, draws=draws):
            rows.append({"dataset": dataset, "metric": metric, **found})
    correct(rows)
    return rows


def enough_draws(comparisons: int, candidates: int, *, hits: int = HITS) -> int:
    """Draws of a permutation test of which ``hits`` go beyond a p that is just significant, all corrections made."""
    return max(DRAWS, round(hits / LEVEL) * comparisons * candidates)


def users_of(table: Sequence[Run]) -> dict[tuple[str, str], dict[str, Values]]:
    """By dataset and metric: the users' values [U] of every system, the mean over its seeds.

    Raises:
        UserError: two runs rank other users.
    """
    found = {}
    for dataset in dict.fromkeys(run["dataset"] for run in table):
        runs = [run for run in table if run["dataset"] == dataset]
        for run in runs:
            if not np.array_equal(run["user_ids"], runs[0]["user_ids"]):
                one, other = (f"{r['system']} with seed {r['seed']}" for r in (runs[0], run))
                raise UserError(f"{dataset}: {one} and {other} rank other users; run both again")
        for metric in METRICS:
            values: dict[str, list[Values]] = {}
            for run in runs:
                values.setdefault(run["system"], []).append(per_user(metric, run["ranks"]))
            found[dataset, metric] = {system: np.mean(v, axis=0) for system, v in values.items()}
    return found


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
    tests: list[dict[str, Any]],
    printed: Mapping[Cell, float],
) -> str:
    names = [read_system(s).name for s in systems]
    significant = {(test["dataset"], test["metric"]) for test in tests if test["p_holm"] < LEVEL}
    lines, below = [f"# {TITLES[number]}", ""], []
    for dataset in datasets:
        users = _users(table)[dataset]
        about = f"{users} users ranked; mean over the seeds (± standard deviation where there are several)."
        lines += [f"## {dataset}", "", about, *notes(table, dataset), ""]
        lines += ["| metric | | " + " | ".join(names) + " | improvement, % |", "|---|---|" + "---:|" * (len(names) + 1)]
        for metric in METRICS:
            values = {s: _values(table, dataset, s, metric) for s in systems}
            means = {s: statistics.fmean(v) for s, v in values.items()}
            best = max(means.values())
            cells = [_cell(values[s], best) for s in systems]
            mark = DAGGER if (dataset, metric) in significant else ""
            found = gain(means, OURS[number])
            lines.append(f"| {metric} | ours | {' | '.join(cells)} | {_percent(found)}{mark} |")
            print_cells = [print_cell(number, printed, (dataset, s, metric)) for s in systems]
            if any(print_cells):
                in_print = gain(_of(printed, dataset, metric), OURS[number])
                lines.append(f"| | print | {' | '.join(print_cells)} | {_percent(in_print)} |")
            if (number, dataset, metric) == HEADLINE and (claim := _claim(printed, means)):
                below.append(claim)
        lines.append("")
    if tests:
        lines.append(
            f"{dagger(significant)} {read_system(OURS[number]).name} and the best other system differ: paired "
            f"permutation test over the users, p < {LEVEL} after Holm's correction for {len(tests)} comparisons. "
            f"{PICKED} {LIMITS}\n"
        )
    lines += own_settings(table)
    if printed:
        below += [OVER_ALL, QUOTED if number in (2, 3) else UNKNOWN_USERS]
    below += slips(number, printed, systems)
    lines += [line for text in below for line in (text, "")]
    return "\n".join(lines).rstrip() + "\n"


def _percent(found: tuple[float, str] | None) -> str:
    return f"{found[0]:.2f}" if found else "-"


def dagger(marked: Collection[object]) -> str:
    """What begins the note on tests below a table, also where they mark nothing: that they were made is to be known."""
    return DAGGER if marked else f"{DAGGER} (nowhere here)"


def _of(printed: Mapping[Cell, float], dataset: str, metric: str) -> dict[str, float]:
    """What is printed of a dataset and metric, by system: of all the paper's systems, not of the configured ones."""
    return {s: value for (d, s, m), value in printed.items() if (d, m) == (dataset, metric)}


def _claim(printed: Mapping[Cell, float], means: Mapping[str, float]) -> str:
    """The gain that the paper puts forward, as it follows from print's own table, beside the one measured here."""
    number, dataset, metric = HEADLINE
    in_print, measured = gain(_of(printed, dataset, metric), OURS[number]), gain(means, OURS[number])
    if not in_print or not measured:
        return ""
    return (
        f"The paper puts forward {read_system(OURS[number]).name}'s gain over the best other system in {metric} on "
        f"{dataset}: {in_print[0]:+.2f} % by print's own table (over {read_system(in_print[1]).name}). Measured here: "
        f"{measured[0]:+.2f} % (over {read_system(measured[1]).name})."
    )


def _cell(values: list[float], best: float) -> str:
    text = mean_and_spread(values, 4)
    return f"**{text}**" if statistics.fmean(values) == best else text


def notes(table: list[Run], dataset: str) -> list[str]:
    """What a reader must know before comparing: seeds, time, pre-training, switches that leak or mask."""
    runs = [run for run in table if run["dataset"] == dataset]
    seeds = {s: sorted({r["seed"] for r in runs if r["system"] == s}) for s in dict.fromkeys(r["system"] for r in runs)}
    notes = [_seeds(seeds)]
    timed = [r for r in runs if "time" in r["config"]["reads"]]
    if timed and not any(r["time"] for r in timed):
        notes.append("time: off (the domain has no timestamps, or the settings leave them out).")
    described = [r["config"]["features"] for r in runs if r["config"].get("features")]
    for encoder, text, image in sorted({(str(d["encoder"]), d["text"], d["image"]) for d in described}):
        notes.append(f"Features: {encoder}; text of {100 * text:.0f} %, images of {100 * image:.0f} % of the items.")
    blind = [
        r["system"] for r in runs if {"text", "image"} & set(r["config"]["reads"]) and not r["config"].get("features")
    ]
    if blind:
        notes.append(f"Features read by {', '.join(dict.fromkeys(blind))}: not recorded.")
    nameless = {r["system"] for r in runs if r["config"].get("attributes") == 0}
    if nameless:
        notes.append(f"Neither brands nor categories are known: attributes of {', '.join(sorted(nameless))} are texts.")
    scratch = sorted({r["system"] for r in runs if not r["config"]["pretrained"]})
    carried = sorted({r["system"] for r in runs if r["config"]["pretrained"]})
    sources = sorted({s for r in runs for s in (r["config"].get("pretraining") or {}).get("sources", [])})
    where = f" on {', '.join(sources)}" if sources else ""
    notes.append(f"From scratch: {', '.join(scratch) or 'none'}; pre-trained{where}: {', '.join(carried) or 'none'}.")
    unsaid = sorted({r["system"] for r in runs if r["config"]["pretrained"] and not r["config"].get("pretraining")})
    if unsaid:
        notes.append(f"Settings of the pre-training of {', '.join(unsaid)}: not recorded in all runs.")
    if carried and len({r["seed"] for r in runs}) > 1:
        notes.append("Pre-training is done once, for all seeds: what another one would change is in no spread.")
    for (key, bad), defect, note in CAVEATS:
        settings = [(r["system"], r["config"]["settings"]) for r in runs]
        systems = sorted({name for name, s in settings if s.get(key) == bad or defect in s.get("defects", [])})
        if systems:
            notes.append(note.format(", ".join(systems)))
    if any(r["config"]["mask_seen"] for r in runs):
        notes.append("Items of the history are no candidates (`mask_seen: true`).")
    return notes


def _seeds(seeds: Mapping[str, list[int]]) -> str:
    """Seeds that systems were run with, those of the same seeds together."""
    groups: dict[str, list[str]] = {}
    for system, own in seeds.items():
        groups.setdefault(", ".join(map(str, own)), []).append(system)
    if len(groups) == 1:
        return f"Seeds: {next(iter(groups))}."
    return "Seeds: " + "; ".join(f"{own} of {', '.join(systems)}" for own, systems in groups.items()) + "."


def own_settings(table: list[Run]) -> list[str]:
    """A list of what was set other than in the systems' files, for below a table; empty if nothing was."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in table:
        datasets = found.setdefault((run["system"], _changed(run["config"])), [])
        if run["dataset"] not in datasets:
            datasets.append(run["dataset"])
    n_texts = Counter(system for system, _ in found)
    lines = []
    for (system, text), datasets in found.items():
        where = f" on {', '.join(datasets)}" if n_texts[system] > 1 else ""
        if text:
            lines.append(f"- {system}{where}: {text}")
    return ["Set other than in `config/systems`, where the value in brackets stands:", "", *lines, ""] if lines else []


def _changed(config: dict[str, Any]) -> str:
    """What of a run's settings differs from its system's file, as ``key value (the file's)``."""
    file = read_system(config["system"])
    carried_from = read_system(file.pretrained_as) if file.pretrained_as else file
    known = file.added | file.settings
    pairs = [(key, value, known.get(key)) for key, value in config["settings"].items()]
    for prefix, stage, own in (
        ("", config["stage"], file.finetune),
        ("indomain.", config.get("indomain"), file.indomain),
        ("pretrain.", (config.get("pretraining") or {}).get("stage"), carried_from.pretrain),
    ):
        if stage and own:
            pairs += [(prefix + key, value, getattr(own, key, None)) for key, value in stage.items()]
    return ", ".join(f"{key} {value} ({own})" for key, value, own in pairs if value != own)
