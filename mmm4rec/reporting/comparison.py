"""Whether two systems of a table differ beyond chance, that of the users and that of the seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmm4rec.config import others
from mmm4rec.errors import UserError
from mmm4rec.evaluation.metrics import METRICS, per_user
from mmm4rec.evaluation.significance import (
    DRAWS,
    Values,
    bootstrap_interval,
    holm,
    paired_p_value,
    seed_noise,
)
from mmm4rec.reporting.runs import Run

LEVEL = 0.05  # of significance
DAGGER = "†"
TEST = ("difference", "seeds", "seed_sd", "seed_df", "low", "high", "p")
COMPARISON = ("system", "other", "others", *TEST, "p_holm")
PICKED = "Where the other is ahead, its p counts as often as there are other systems: it was picked as their best."
HITS = 400  # draws beyond a p that is just significant after all corrections: it is known to 5 %

#: the users' values of a system's runs: an array [U] a seed; of a system that draws nothing one for all seeds
Seeds = list[Values]


def users_of(table: Sequence[Run]) -> dict[tuple[str, str], dict[str, Seeds]]:
    """By dataset and metric: the users' values of every system's runs.

    Raises:
        UserError: two runs rank other users.
    """
    found: dict[tuple[str, str], dict[str, Seeds]] = {}
    for dataset in dict.fromkeys(run["dataset"] for run in table):
        runs = [run for run in table if run["dataset"] == dataset]
        for run in runs:
            if not np.array_equal(run["user_ids"], runs[0]["user_ids"]):
                one, other = (f"{r['system']} with seed {r['seed']}" for r in (runs[0], run))
                raise UserError(f"{dataset}: {one} and {other} rank other users; run both again")
        ranks: dict[str, list[npt.NDArray[np.integer]]] = {}
        for run in runs:
            ranks.setdefault(run["system"], []).append(run["ranks"])
        for system, seeds in ranks.items():
            if all(np.array_equal(seeds[0], other) for other in seeds):  # Popularity, whatever its seed
                ranks[system] = seeds[:1]
        for metric in METRICS:
            found[dataset, metric] = {s: [per_user(metric, each) for each in seeds] for s, seeds in ranks.items()}
    return found


def paired_test(systems: Mapping[str, Seeds], one: str, other: str, *, draws: int) -> dict[str, Any]:
    """Two systems, user by user, the values of a user averaged over the seeds.

    Args:
        systems: values of a metric; all of them tell how much seeds do.
        one: a system.
        other: another.
        draws: of the permutation test.

    Returns:
        ``TEST``: the difference of the means, the seeds that the one with fewer has, what other seeds alone do to the
        difference (standard deviation, degrees of freedom of that estimate; 0: no system has several seeds), its
        bootstrap interval (95 %) and the p of the paired permutation test, both over users and seeds.
    """
    n_one, n_other = len(systems[one]), len(systems[other])
    means = ([float(values.mean()) for values in seeds] for seeds in systems.values())
    noise = seed_noise(means, n_one, n_other)
    a, b = (np.mean(systems[system], axis=0) for system in (one, other))
    low, high = bootstrap_interval(a - b, noise=noise)
    p = paired_p_value(a, b, noise=noise, draws=draws)
    return dict(zip(TEST, (float((a - b).mean()), min(n_one, n_other), *noise, low, high, p), strict=True))


def against_best(systems: Mapping[str, Seeds], ours: str, *, draws: int = DRAWS) -> dict[str, Any] | None:
    """Ours against the best other system.

    Args:
        systems: values of a metric.
        ours: a system.
        draws: of the permutation test.

    Returns:
        ``COMPARISON`` but its last: which is the best other system and of how many, and ``paired_test`` of the two;
        None where there is nothing to compare.
    """
    rivals = others(systems, ours)
    if ours not in systems or not rivals:
        return None
    best = max(rivals, key=lambda system: float(np.mean(systems[system])))
    return {"system": ours, "other": best, "others": len(rivals), **paired_test(systems, ours, best, draws=draws)}


def correct(rows: Sequence[dict[str, Any]]) -> None:
    """Give every comparison ``p_holm``: its p, corrected for the search for the other system and for all comparisons.

    Where the other is ahead, it was picked as the best of K that all had their chance to be, and its p counts K times
    (Bonferroni). Where ours is ahead, nothing was picked in favour of the difference. Then Holm.
    """
    picked = [min(1.0, row["p"] * (row.get("others", 1) if row["difference"] < 0 else 1)) for row in rows]
    for row, corrected in zip(rows, holm(picked), strict=True):
        row["p_holm"] = corrected


def enough_draws(comparisons: int, candidates: int, *, hits: int = HITS) -> int:
    """Draws of a permutation test of which ``hits`` go beyond a p that is just significant, all corrections made."""
    return max(DRAWS, round(hits / LEVEL) * comparisons * candidates)


def mark(test: Mapping[str, Any]) -> str:
    """What stands behind a number: a dagger beyond chance, in brackets where one of the two has a single seed."""
    if test["p_holm"] >= LEVEL:
        return ""
    return DAGGER if test["seeds"] > 1 else f"({DAGGER})"


def explain(tests: Sequence[Mapping[str, Any]], what: str) -> str:
    """The note on tests below a table, also where they mark nothing: that they were made is to be known.

    Args:
        tests: all of the table.
        what: says of what is marked that it differs.
    """
    text = [] if any(mark(test) for test in tests) else ["Nothing is marked here."]
    how = f"paired permutation test over the users, p < {LEVEL} after Holm's correction for {len(tests)} comparisons"
    pooled = "the spread of seeds is pooled over the table's systems with several and taken to be the same for all"
    if known := [test["seeds"] for test in tests if test["seed_df"]]:
        single = f", ({DAGGER}) where one of the two has a single seed" if min(known) == 1 else ""
        text.append(f"{DAGGER}{single}: {what} beyond what other users and other seeds would change ({how}; {pooled}).")
    if any(not test["seed_df"] for test in tests):
        text.append(
            f"({DAGGER}): {what} beyond what other users would change ({how}); no system has several seeds, so that "
            "what other seeds would change is not in it."
        )
    text.append(
        "The comparisons of a table are corrected together, so that the same two systems may be marked in one table "
        "and not in another."
    )
    if any("others" in test for test in tests):
        text.append(PICKED)
    return " ".join(text)
