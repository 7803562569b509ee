"""The plan as tables on the screen, as CSV and as JSON."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table

from mmm4rec.errors import UserError
from mmm4rec.io import write_json, write_text
from mmm4rec.planning.cost import Line, Plan
from mmm4rec.planning.disk import Disk
from mmm4rec.planning.sizes import Size
from mmm4rec.reporting.runs import to_csv

MIB_A_GB = 1e9 / 2**20
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print a plan: jobs and hours, sizes of domains, disk, notes."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=200)  # a log has no width
    parts: list[RenderableType] = [_lines(plan.lines), _totals(plan.lines), _sizes(plan.sizes), _disk(plan.disk)]
    console.print(Group(*parts, *plan.notes))


def write_plan(plan: Plan, out: Path) -> None:
    """Write a plan: a line a row as CSV, or all of it as JSON, by the end of the file's name.

    Raises:
        UserError: the name ends in neither .csv nor .json.
    """
    if out.suffix == ".json":
        write_json(out, plan.as_dict())
    elif out.suffix == ".csv":
        rows = [["" if v is None else v for v in dataclasses.astuple(line)] for line in plan.lines]
        write_text(out, to_csv([field.name for field in dataclasses.fields(Line)], rows))
    else:
        raise UserError(f"--out {out}: give it a name that ends in .csv or .json")


def _lines(lines: Sequence[Line]) -> Table:
    table = Table("step", "system", title="Jobs", title_justify="left")
    for name in ("jobs", "done", "left", "epochs", "hours left (least - most)", "memory, GB"):
        table.add_column(name, justify="right")
    table.add_column("device")
    table.add_column("rate from; epochs from")
    for line in lines:
        outdated = f" ({line.out_of_date} out of date)" if line.out_of_date else ""
        table.add_row(
            line.step,
            line.system,
            str(line.jobs),
            str(line.done),
            f"{line.left}{outdated}" if line.left else "",
            _epochs(line),
            _hours(line),
            _memory(line),
            line.device if line.hours is not None else "",
            "; ".join(filter(None, [line.rate_from, line.epochs_from and f"epochs: {line.epochs_from}"])),
        )
    return table


def _epochs(line: Line) -> str:
    if line.epochs_most is None:
        return ""
    return str(line.epochs_most) if line.epochs_least == line.epochs_most else f"{line.epochs_least}-{line.epochs_most}"


def _hours(line: Line) -> str:
    if not line.left:
        return ""
    if line.hours is None or line.hours_least is None or line.hours_most is None:
        return "unknown"
    text = _number(line.hours)
    if line.hours_most > line.hours_least:
        text += f" ({_number(line.hours_least)} - {_number(line.hours_most)})"
    return text + (f" + {line.not_estimated} jobs unknown" if line.not_estimated else "")


def _number(hours: float) -> str:
    """Hours with no more digits than they deserve.

    >>> [_number(hours) for hours in (1234.5, 12.34, 0.1234, 0.001)]
    ['1,234', '12.3', '0.12', '< 0.01']
    """
    if hours < 0.01:
        return "< 0.01" if hours else "0"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def _memory(line: Line) -> str:
    if line.memory_mib is None:
        return ""
    gpu = f", GPU {line.gpu_memory_mib / MIB_A_GB:.1f}" if line.gpu_memory_mib else ""
    return f"{line.memory_mib / MIB_A_GB:.1f}{gpu}"


def _totals(lines: Sequence[Line]) -> str:
    """One sentence: jobs, hours by device, the largest job."""
    left = sum(line.left for line in lines)
    text = [f"{sum(line.jobs for line in lines)} jobs, {sum(line.done for line in lines)} done, {left} left."]
    for device in dict.fromkeys(line.device for line in lines):
        some = [line for line in lines if line.device == device and line.hours is not None]
        least, hours, most = (
            sum(getattr(line, name) for line in some) for name in ("hours_least", "hours", "hours_most")
        )
        if some:
            text.append(f"{device} hours left: {_number(hours)} ({_number(least)} - {_number(most)}).")
    if unknown := sum(line.not_estimated for line in lines):
        text.append(f"{unknown} jobs not estimated.")
    if memory := max((line.memory_mib for line in lines if line.memory_mib), default=None):
        text.append(f"Peak memory of a job: {memory / MIB_A_GB:.1f} GB.")
    return " ".join(text) + "\n"


def _sizes(sizes: dict[str, Size | None]) -> Table:
    table = Table("domain", title="Domains", title_justify="left")
    for name in ("users ranked", "items", "items with an image", "training rows"):
        table.add_column(name, justify="right")
    table.add_column("from")
    for name, size in sizes.items():
        if size is None:
            table.add_row(name, "", "", "", "", "unknown until prepared")
        else:
            numbers = (size.users, size.items, size.images, size.rows)
            table.add_row(name, *(f"{number:,}" for number in numbers), size.origin)
    return table


def _disk(disk: Sequence[Disk]) -> Table:
    table = Table("files", title="Disk", title_justify="left")
    for name in ("there", "to come"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in disk:
        table.add_row(row.what, _size(row.there), "unknown" if row.to_come is None else _size(row.to_come), row.note)
    table.add_section()
    known = sum(row.to_come or 0 for row in disk)
    table.add_row("together", _size(sum(row.there for row in disk)), _size(known), "of what is known")
    return table


def _size(number: int) -> str:
    for unit, name in UNITS:
        if number >= unit:
            return f"{number / unit:,.1f} {name}"
    return f"{number} B" if number else "-"
