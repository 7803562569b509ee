"""Accuracy where data is thin: by popularity of the test item, length of the history, and what is known of the item.

Beyond the paper, and from the ranks of finished runs alone: nothing is trained or ranked again.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmm4rec.config import read_system
from mmm4rec.errors import UserError
from mmm4rec.evaluation.metrics import METRICS
from mmm4rec.features.store import read_table
from mmm4rec.io import write_text
from mmm4rec.reporting.comparison import COMPARISON, against_best, correct, enough_draws, explain, mark, users_of
from mmm4rec.reporting.notes import bullets, notes, own_settings
from mmm4rec.reporting.runs import Run, read_run, rounded, to_csv
from mmm4rec.training.data import Events, load_events

OURS = "mmm4rec"
COLUMNS = ("dataset", "group", "bin", "users", "system", "metric", "value")
TEST_COLUMNS = ("dataset", "group", "bin", "users", "metric", *COMPARISON)
#: smallest and largest number of each bin
POPULARITY = ((0, 0), (1, 5), (6, 20), (21, None))
HISTORY = ((2, 3), (4, 5), (6, 10), (11, None))
FEW, FEW_MARK = 30, "‡"
NOTE = f"""\
Beyond the paper. Users are grouped by their test item and by their history; a cell is the mean over the users of its
bin and over the seeds, the best of a column is bold.

- popularity: training events of the test item, all users' validation and test items left out; none: unseen
- history: events before the test item, the validation item among them; a user of a 5-core has four or more
- image, text: whether the features have it for the test item

Bins without users are left out, and so are groups of one bin only. {FEW_MARK}: fewer than {FEW} users."""


@dataclass(frozen=True)
class Bin:
    """Users who have something in common.

    Attributes:
        group: what users are grouped by.
        name: of the bin.
        members: [U] bool, of all ranked users.
    """

    group: str
    name: str
    members: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Result:
    """How well the users of a bin are served.

    Attributes:
        dataset: key of the domain.
        group: of the bin.
        bin: its name.
        users: how many they are.
        means: over users and seeds, by (metric, system).
        tests: ours against the best other system, by metric: ``COMPARISON``; empty where there is nothing to compare.
    """

    dataset: str
    group: str
    bin: str
    users: int
    means: dict[tuple[str, str], float]
    tests: dict[str, dict[str, Any]]


def write_sparsity_table(
    runs: Sequence[Path],
    domains: Mapping[str, Path],
    features: Mapping[str, Path],
    out: Path,
    *,
    systems: Sequence[str],
    compare: str | None = None,
) -> None:
    """Write ``sparsity.csv`` (long), ``sparsity_tests.csv`` and ``sparsity.md``.

    Args:
        runs: run folders; every domain needs the same systems.
        domains: folder of every prepared domain, by dataset.
        features: feature files, by the same keys; left empty for domains without.
        out: path of ``sparsity.csv``.
        systems: in this order.
        compare: the one that is held against the best other of each bin; MMM4Rec if None or if it is none of them.

    Raises:
        UserError: a run is missing or not finished, or files do not belong together.
    """
    table = [read_run(path) for path in runs]
    ours = compare if compare and compare in systems else OURS
    events = {dataset: load_events([folder]) for dataset, folder in domains.items()}
    bins = {dataset: bins_of(its, features.get(dataset)) for dataset, its in events.items()}
    for dataset, its in events.items():
        _check([run for run in table if run["dataset"] == dataset], its, dataset, systems)
    # many comparisons: so many draws that the smallest p there can be is significant after all corrections, no more
    draws = enough_draws(len(METRICS) * sum(map(len, bins.values())), len(systems), hits=2)
    results = [
        result
        for dataset in domains
        for result in _measure(dataset, [run for run in table if run["dataset"] == dataset], bins[dataset], ours, draws)
    ]
    correct([test for result in results for test in result.tests.values()])

    rows = [
        [r.dataset, r.group, r.bin, r.users, system, metric, f"{r.means[metric, system]:.6f}"]
        for r in results
        for system in systems
        for metric in METRICS
    ]
    tests = [
        [r.dataset, r.group, r.bin, r.users, metric, *rounded(test.values())]
        for r in results
        for metric, test in r.tests.items()
    ]
    write_text(out, to_csv(COLUMNS, rows))
    write_text(out.with_name(f"{out.stem}_tests.csv"), to_csv(TEST_COLUMNS, tests))
    write_text(out.with_suffix(".md"), _markdown(table, results, systems, ours, bins))


def bins_of(events: Events, features: Path | None) -> list[Bin]:
    """The bins of a domain's ranked users; everybody first.

    Args:
        events: of the domain.
        features: its feature file.

    Raises:
        UserError: the file has features of other items.
    """
    rows = events.test_rows()
    items = events.items[rows]
    everybody = Bin("all", "all", np.ones(len(rows), dtype=np.bool_))
    groups = [
        _ranges("popularity", POPULARITY, events.popularity()[items].numpy()),
        _ranges("history", HISTORY, (rows - events.first[rows]).numpy()),
    ]
    if features:
        known = read_table(features, ["has_image", "has_text"])
        if len(known) != events.n_items:
            raise UserError(
                f"{features}: features for {len(known)} items, the domain has {events.n_items}; rebuild them"
            )
        for group in ("image", "text"):
            present = known[f"has_{group}"].to_numpy()[items.numpy() - 1]
            groups.append([Bin(group, "present", present), Bin(group, "missing", ~present)])
    filled = [[each for each in group if each.members.any()] for group in groups]
    return [everybody, *(each for group in filled if len(group) > 1 for each in group)]


def _ranges(group: str, bounds: Sequence[tuple[int, int | None]], numbers: npt.NDArray[np.int64]) -> list[Bin]:
    bins = []
    for low, high in bounds:
        name = "unseen" if high == 0 else f"{low}+" if high is None else f"{low}-{high}"
        bins.append(Bin(group, name, (numbers >= low) & (numbers <= (np.inf if high is None else high))))
    return bins


def _check(runs: Sequence[Run], events: Events, dataset: str, systems: Sequence[str]) -> None:
    """Raise a ``UserError`` where a run is missing, or ranks other users than the domain has."""
    missing = [system for system in systems if system not in {run["system"] for run in runs}]
    if missing:
        raise UserError(f"no finished run of {', '.join(missing)} on {dataset}")
    users = events.users[events.ranked].numpy()
    for run in runs:
        if not np.array_equal(run["user_ids"], users):
            raise UserError(
                f"{run['system']} with seed {run['seed']} ranks other users than {dataset} has now; run it again"
            )


def _measure(dataset: str, runs: Sequence[Run], bins: Sequence[Bin], ours: str, draws: int) -> list[Result]:
    """All bins of a dataset; the tests are not corrected for their number yet."""
    values = {metric: systems for (_, metric), systems in users_of(runs).items()}
    results = []
    for each in bins:
        inside = {
            metric: {system: [v[each.members] for v in seeds] for system, seeds in systems.items()}
            for metric, systems in values.items()
        }
        means = {
            (metric, system): statistics.fmean(v.mean() for v in seeds)
            for metric, systems in inside.items()
            for system, seeds in systems.items()
        }
        tests = {m: found for m, systems in inside.items() if (found := against_best(systems, ours, draws=draws))}
        results.append(Result(dataset, each.group, each.name, int(each.members.sum()), means, tests))
    return results


def same_users(bins: Sequence[Bin]) -> list[str]:
    """What is to be said of bins that hold the same users: they are one finding, not two."""
    return [
        f"{one.group} {one.name} and {other.group} {other.name} are the same users."
        for one, other in combinations(bins, 2)
        if np.array_equal(one.members, other.members)
    ]


def _markdown(
    table: list[Run], results: Sequence[Result], systems: Sequence[str], ours: str, bins: Mapping[str, Sequence[Bin]]
) -> str:
    name = read_system(ours).name
    lines = ["# Where data is thin: cold items, short histories, missing images", "", NOTE, ""]
    if tests := [test for result in results for test in result.tests.values()]:
        lines += [
            f"Below the systems: {name} less the best other system of the bin. {explain(tests, 'the two differ')}",
            "",
        ]
    for dataset in dict.fromkeys(result.dataset for result in results):
        columns = [result for result in results if result.dataset == dataset]
        lines += [f"## {dataset}", "", *bullets([*notes(table, dataset), *same_users(bins[dataset])]), ""]
        heads = ["all" if c.group == "all" else f"{c.group} {c.bin}" for c in columns]
        for metric in METRICS:
            lines += [f"| {metric} | {' | '.join(heads)} |", "|---|" + "---:|" * len(columns)]
            counts = [f"{c.users}{FEW_MARK if c.users < FEW else ''}" for c in columns]
            lines.append(f"| users | {' | '.join(counts)} |")
            best = [max(c.means[metric, system] for system in systems) for c in columns]
            for system in systems:
                cells = [_cell(c.means[metric, system], top) for c, top in zip(columns, best, strict=True)]
                lines.append(f"| {read_system(system).name} | {' | '.join(cells)} |")
            if all(c.tests for c in columns):
                found = [c.tests[metric] for c in columns]
                marked = [f"{t['difference']:+.4f}{mark(t)}" for t in found]
                lines.append(f"| {name} less the best other | {' | '.join(marked)} |")
                # where no other system ever hits, none of them is the best
                hit = [c.means[metric, t["other"]] > 0 for t, c in zip(found, columns, strict=True)]
                which = [read_system(t["other"]).name if hits else "-" for t, hits in zip(found, hit, strict=True)]
                lines.append(f"| which is | {' | '.join(which)} |")
            lines.append("")
    lines += own_settings(table)
    return "\n".join(lines).rstrip() + "\n"


def _cell(value: float, best: float) -> str:
    return f"**{value:.4f}**" if value == best > 0 else f"{value:.4f}"
