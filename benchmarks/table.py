"""What a benchmark finds out: rows of a CSV file, with the machine and the versions they hold for."""

import csv
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from mmm4rec.io import write_text
from mmm4rec.provenance import environment
from mmm4rec.reporting.runs import to_csv

PAGE = (
    "Written by `make bench`. The share is the other time over ours: 0.5 against a roofline is half of what the device "
    "could do at best, 10 against a rival is ten times as fast. docs/performance.md says what is measured and why."
)

HEAD = "| | size | time | held against | its time | share | memory, MiB | |"

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


def write_rows(path: Path, rows: Iterable[Row], device: str) -> None:
    """Write rows with their share of the limit and where they come from: ``cpu`` or ``cuda``, by name."""
    made = environment([], device)
    versions = [made["python"], *(made["packages"].get(name, "") for name in ("torch", "polars"))]
    where = [made["device"], made["cpus"], made["threads"], *versions, datetime.now(UTC).date(), made["commit"]]
    header = [*COLUMNS, "share", "device", "cpus", "threads", "python", "torch", "polars", "date", "commit"]
    table = [[_cell(v) for v in (*dataclasses.astuple(row), row.share, *where)] for row in rows]
    write_text(path, to_csv(header, table))


def read_rows(path: Path) -> list[Row]:
    """Read what ``write_rows`` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = {field.name: field.type for field in dataclasses.fields(Row)}
    return [Row(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in rows]  # type: ignore[operator]


def write_page(folder: Path, names: Sequence[str]) -> None:
    """Write what the CSV files of a folder say as ``README.md``, for reading."""
    lines = ["# Measured speed and memory", "", PAGE, ""]
    for name in names:
        path = folder / f"{name}.csv"
        if not path.exists():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            made = next(csv.DictReader(file))
        lines += [f"## {name.capitalize()}", ""]
        threads = f"{made['threads']} thread{'s' * (made['threads'] != '1')}"
        versions = f"{threads}, torch {made['torch']}, {made['date']}, {made['commit'][:10]}"
        lines += [f"{made['device']}, {versions}.", "", HEAD, "|---|---:|---:|---|---:|---:|---:|---|"]
        for row in read_rows(path):
            cells = [row.what, f"{row.size:,.0f} {row.unit}", _time(row.seconds), row.against, _time(row.limit)]
            cells += [f"{row.share:.2f}", f"{row.memory:.0f}" if row.memory else "", row.remark]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", f"![{name}]({name}.png)", ""]
    write_text(folder / "README.md", "\n".join(lines).rstrip() + "\n")


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a process of its own, as a training is one."""
    with processes(1) as process:
        return process.submit(function, *args, **kwargs).result()


def processes(number: int) -> ProcessPoolExecutor:
    """Fresh processes, set up as a training is."""
    return ProcessPoolExecutor(number, get_context("spawn"), as_in_training)


def as_in_training() -> None:
    """One thread, as the workflow's jobs have, and TF32 on a GPU."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")


def held(run: Callable[[], T], device: str) -> tuple[T, float]:
    """What a call gives, and the MiB that the process, or the GPU, held at most meanwhile."""
    start_peak(device)
    result = run()
    return result, peak_bytes(device) / 2**20


def start_peak(device: str) -> None:
    """Forget what was held before: the peak is that of now on."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """Bytes held at most by the process, or on the GPU.

    The kernel's high-water mark of the process; ``ru_maxrss`` would begin with that of the process which started it.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def _cell(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
