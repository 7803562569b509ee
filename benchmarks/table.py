"""What a benchmark finds out: rows of a CSV file, with the machine and the versions they hold for."""

import csv
import dataclasses
import resource
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

from mmm4rec.io import write_text
from mmm4rec.provenance import environment
from mmm4rec.reporting.runs import to_csv

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        what: is measured.
        size: what the cost grows with, as a number, for plots.
        unit: of ``size``.
        seconds: it takes.
        against: what it is held against: ``roofline``, or what else ran in the same process or run.
        limit: seconds of that.
        memory: peak, MiB: of the process, or on the GPU, or what a remark says; 0 where not measured.
        remark: what else is to be known.
    """

    what: str
    size: float
    unit: str
    seconds: float
    against: str
    limit: float
    memory: float = 0.0
    remark: str = ""

    @property
    def share(self) -> float:
        """Of the limit that is reached: 1 is as quick as what it is held against, 2 twice as quick."""
        return self.limit / self.seconds


COLUMNS = [field.name for field in dataclasses.fields(Row)]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows with their share of the limit and where they come from."""
    made = environment([])
    where = [made["device"], made["threads"], made["packages"]["torch"], datetime.now(UTC).date(), made["commit"]]
    header = [*COLUMNS, "share", "device", "threads", "torch", "date", "commit"]
    table = [[_cell(v) for v in (*dataclasses.astuple(row), row.share, *where)] for row in rows]
    write_text(path, to_csv(header, table))


def read_rows(path: Path) -> list[Row]:
    """Read what ``write_rows`` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {field.name: field.type for field in dataclasses.fields(Row)}
    return [Row(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in rows]  # type: ignore[operator]


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """Call a function in a process of its own; also gives that process's peak memory in MiB."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_with_memory, function, *args, **kwargs).result()


def _with_memory(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    result = function(*args, **kwargs)
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _cell(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
