"""Table V: how long fine-tuning takes to reach the best validation score."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from mmm4rec.config import others, read_system
from mmm4rec.io import write_text
from mmm4rec.reporting.notes import bullets, notes, own_settings
from mmm4rec.reporting.published import LOGGED, Cell, comparable, print_cell, slips
from mmm4rec.reporting.runs import Run, devices_line, mean_and_spread, read_run, require_runs, to_csv

#: the table's quantity, and what a run calls it; the paper prints the first two
QUANTITIES = {
    "epochs_to_best": "best_epoch",
    "seconds_per_epoch": "seconds_per_epoch",
    "seconds_to_best": "seconds_to_best",
}
PRODUCT = "epochs x seconds"
OURS = "mmm4rec"
#: where the paper puts forward that it converges so many times as fast as the systems of the table
HEADLINE, CLAIMED = ("arts", "office"), "10 times"
NOTE = f"""\
Means over the seeds (± standard deviation where there are several). The best epoch is that of the validation score that
stops training, which goes on for `patience` epochs more, here and in print. Seconds to the best include validation
and a first stage on the target; seconds an epoch, and so {PRODUCT} an epoch, do not. An epoch is a pass over the
training rows in batches and steps of each system's own size, so epochs of different systems are not the same work;
seconds on one device can be compared. Print is of the authors' device and of MMM4Rec with ID alone: the authors' logs
of it without ID have their best epochs between 37 and 99. MISSRec's epochs in print come from batches of another size;
MMM4Rec's seconds an epoch in print are minima, medians and means of the authors' logs, by domain."""


def write_convergence_table(runs: Sequence[Path], out: Path, *, systems: Sequence[str]) -> None:
    """Write ``table5.csv`` (a quantity a row, a system a column) and ``table5.md``, which has derived rows too.

    Args:
        runs: run folders; every dataset needs the same systems.
        out: path of ``table5.csv``.
        systems: columns, in this order.

    Raises:
        UserError: a run is missing or not finished.
    """
    table = [read_run(path) for path in runs]
    require_runs(table, systems, out)
    rows = []
    for dataset in dict.fromkeys(run["dataset"] for run in table):
        for quantity, key in QUANTITIES.items():
            means = [statistics.fmean(_values(table, dataset, system, key)) for system in systems]
            rows.append([dataset, quantity, *(f"{mean:.2f}" for mean in means)])
    write_text(out, to_csv(["dataset", "quantity", *systems], rows))
    write_text(out.with_suffix(".md"), _markdown(table, systems))


def _values(table: Sequence[Run], dataset: str, system: str, key: str) -> list[float]:
    """A run's entry, or the product of epochs and seconds an epoch, for every seed."""
    runs = [run for run in table if (run["dataset"], run["system"]) == (dataset, system)]
    if key == PRODUCT:
        return [run["best_epoch"] * run["seconds_per_epoch"] for run in runs]
    return [float(run[key]) for run in runs]


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Every system's seconds in multiples of ours; empty where ours is missing or took none.

    >>> ratios({"missrec": 30.0, "mmm4rec": 4.0})
    {'missrec': 7.5, 'mmm4rec': 1.0}
    """
    ours = seconds.get(OURS, 0.0)
    return {system: value / ours for system, value in seconds.items()} if ours > 0 else {}


def _markdown(table: list[Run], systems: Sequence[str]) -> str:
    names = {system: read_system(system).name for system in systems}
    printed = comparable(5, {run["dataset"]: run["users"] for run in table})
    lines = ["# Table V: epochs and seconds to the best validation score", "", NOTE, ""]
    claims = []
    for dataset in dict.fromkeys(run["dataset"] for run in table):
        used = [(run["device"], names[run["system"]]) for run in table if run["dataset"] == dataset]
        one_device = len({device for device, _ in used}) == 1
        ran = devices_line(used) + ("" if one_device else " Seconds of different devices cannot be compared.")
        lines += [f"## {dataset}", "", *bullets([ran, *notes(table, dataset)]), ""]
        lines += ["| quantity | | " + " | ".join(names.values()) + " |", "|---|---|" + "---:|" * len(systems)]
        rows: list[tuple[str, dict[str, str], dict[str, str]]] = []
        for quantity, key in (*QUANTITIES.items(), (PRODUCT, PRODUCT)):
            values = {system: mean_and_spread(_values(table, dataset, system, key), 2) for system in systems}
            rows.append((quantity.replace("_", " "), values, _printed(printed, dataset, quantity)))
        measured = ratios({s: statistics.fmean(_values(table, dataset, s, PRODUCT)) for s in systems})
        in_print = ratios({s: seconds for (d, s), seconds in _products(printed).items() if d == dataset})
        if measured:
            multiples = _times(measured) if one_device else {}
            rows.append((f"in multiples of {read_system(OURS).name}'s", multiples, _times(in_print)))
        for quantity, values, theirs in rows:
            label = quantity
            for source, known in (("ours", values), ("print", theirs)):
                cells = [known.get(system, "") for system in systems]
                if any(cells):
                    lines.append(f"| {label} | {source} | {' | '.join(cells)} |")
                    label = ""
        lines.append("")
        if dataset in HEADLINE and in_print and others(measured, OURS):
            logged = {cell: LOGGED.get((5, *cell), value) for cell, value in printed.items()}
            by_logs = ratios({s: seconds for (d, s), seconds in _products(logged).items() if d == dataset})
            mended = f" ({_against(by_logs)} by the authors' logs)" if by_logs != in_print else ""
            ours = _against(measured)
            if not one_device:
                epochs = {s: mean_and_spread(_values(table, dataset, s, "best_epoch"), 0) for s in measured}
                counted = ", ".join(f"{epoch} ({names[s]})" for s, epoch in epochs.items())
                ours = f"on several devices, whose seconds cannot be compared; epochs to the best: {counted}"
            claims.append(f"- {dataset}: {_against(in_print)} by print's own table{mended}; measured here {ours}")
    if printed:
        lines += [
            f"The paper puts forward that {read_system(OURS).name} converges {CLAIMED} as fast as MMSRec and MISSRec "
            f"on {' and '.join(d.capitalize() for d in HEADLINE)} ({PRODUCT} an epoch):",
            "",
            *(claims or ["- not measured here"]),
            "",
        ]
    lines += own_settings(table)
    lines += [line for text in slips(5, printed, systems) for line in (text, "")]
    return "\n".join(lines).rstrip() + "\n"


def _products(printed: dict[Cell, float]) -> dict[tuple[str, str], float]:
    """Epochs times seconds an epoch in print, by dataset and system."""
    return {
        (dataset, system): epochs * printed[dataset, system, "seconds_per_epoch"]
        for (dataset, system, quantity), epochs in printed.items()
        if quantity == "epochs_to_best"
    }


def _printed(printed: dict[Cell, float], dataset: str, quantity: str) -> dict[str, str]:
    if quantity == PRODUCT:
        return {s: f"{seconds:.2f}" for (d, s), seconds in _products(printed).items() if d == dataset}
    return {cell[1]: print_cell(5, printed, cell) for cell in printed if (cell[0], cell[2]) == (dataset, quantity)}


def _times(values: dict[str, float]) -> dict[str, str]:
    return {system: f"{value:.2f}" for system, value in values.items()}


def _against(values: dict[str, float]) -> str:
    """Ratios of the other systems, in words."""
    return ", ".join(f"{values[s]:.1f} times ({read_system(s).name})" for s in others(values, OURS))
