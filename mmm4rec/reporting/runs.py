"""What the tables read of finished runs, and how they write it."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmm4rec.config import WITH_IMAGE
from mmm4rec.errors import UserError
from mmm4rec.io import read_json

Run = dict[str, Any]


def read_run(path: Path) -> Run:
    """A run folder: dataset, system, seed, ``config``, ``device``, ``ranks`` [U], and all of its metrics.

    Raises:
        UserError: it has not finished.
    """
    try:
        config, metrics = read_json(path / "config.json"), read_json(path / "metrics.json")
        device = read_json(path / "environment.json")["device"]
        ranks = pq.read_table(path / "ranks.parquet")["rank"].to_numpy()
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: no such file; this run has not finished") from None
    return {
        "dataset": config["domain"].removesuffix(WITH_IMAGE),
        "system": config["system"],
        "seed": config["seed"],
        "config": config,
        "device": device,
        "ranks": ranks,
        **metrics,
    }


def to_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
