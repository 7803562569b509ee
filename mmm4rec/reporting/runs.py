"""What the tables read of finished runs, and how they write it."""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmm4rec.config import WITH_IMAGE
from mmm4rec.errors import UserError
from mmm4rec.io import read_json

Run = dict[str, Any]


def read_run(path: Path) -> Run:
    """A run folder: dataset, system, seed, ``config``, ``device``, ``ranks`` and ``user_ids`` [U], and all its metrics.

    Raises:
        UserError: it has not finished.
    """
    try:
        config, metrics = read_json(path / "config.json"), read_json(path / "metrics.json")
        device = read_json(path / "environment.json")["device"]
        ranks = pq.read_table(path / "ranks.parquet")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: no such file; this run has not finished") from None
    return {
        "dataset": config["domain"].removesuffix(WITH_IMAGE),
        "system": config["system"],
        "seed": config["seed"],
        "config": config,
        "device": device,
        "ranks": ranks["rank"].to_numpy(),
        "user_ids": ranks["user_id"].to_numpy(),
        **metrics,
    }


def require_runs(runs: Iterable[Run], systems: Iterable[str], out: Path) -> None:
    """Hold the runs of a table, ``out``, against its systems.

    Raises:
        UserError: one of them has no run on a dataset that others have runs on.
    """
    there: dict[str, set[str]] = {}
    for run in runs:
        there.setdefault(run["dataset"], set()).add(run["system"])
    for dataset, found in there.items():
        if missing := [system for system in systems if system not in found]:
            raise UserError(f"{out}: no finished run of {', '.join(missing)} on {dataset}")


def devices_line(used: Iterable[tuple[str, str]]) -> str:
    """Says which device (or devices) what ran on.

    >>> devices_line([("H100", "pop"), ("H100", "pop")]), devices_line([("H100", "pop"), ("A100", "pop")])
    ('Device: H100.', 'Devices: A100: pop; H100: pop.')
    """
    ran: dict[str, dict[str, None]] = {}
    for device, what in used:
        ran.setdefault(device, {})[what] = None
    if len(ran) == 1:
        return f"Device: {next(iter(ran))}."
    return "Devices: " + "; ".join(f"{device}: {', '.join(ran[device])}" for device in sorted(ran)) + "."


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Mean over the seeds, with the standard deviation where there are several.

    >>> mean_and_spread([1.0, 3.0], 2), mean_and_spread([1.0], 2)
    ('2.00 ± 1.41', '1.00')
    """
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def rounded(values: Iterable[object]) -> list[str]:
    """Cells of a CSV file; six significant digits of what is no whole number."""
    return [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]


def to_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
