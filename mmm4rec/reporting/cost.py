"""What every system costs: epochs, seconds, parameters, memory, from the runs' own records."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmm4rec.config import read_system, system_keys
from mmm4rec.errors import UserError
from mmm4rec.io import read_json, write_text
from mmm4rec.reporting.runs import devices_line, to_csv

#: a run's quantity, and the decimals it is written with
QUANTITIES = {
    "parameters": 0,
    "trained_parameters": 0,
    "epochs": 1,
    "best_epoch": 1,
    "seconds_per_epoch": 2,
    "seconds": 1,
    "seconds_to_best": 1,
    "peak_memory_mib": 0,
    "peak_gpu_memory_mib": 0,
}
PRETRAINING = "pre-training"


def write_cost_table(runs: Sequence[Path], out: Path) -> None:
    """Write ``cost.csv`` (a row a dataset and system, means over the seeds) and ``cost.md``.

    Args:
        runs: run folders of fine-tuning and of pre-training; the latter's dataset is ``pre-training``.
        out: path of ``cost.csv``.

    Raises:
        UserError: a run is not finished.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    devices: dict[tuple[str, str], set[str]] = {}
    for path in runs:
        try:
            config, metrics, made_with = (read_json(path / f"{n}.json") for n in ("config", "metrics", "environment"))
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: no such file; this run has not finished") from None
        key = (config.get("domain", PRETRAINING), config["system"])
        found.setdefault(key, []).append(metrics)
        devices.setdefault(key, set()).add(made_with["device"])
    datasets = list(dict.fromkeys(dataset for dataset, _ in found))
    rows = [
        [
            dataset,
            system,
            len(of_system),
            *(_mean(of_system, name) for name in QUANTITIES),
            "; ".join(sorted(devices[dataset, system])),
        ]
        for dataset in datasets
        for system in system_keys()
        if (of_system := found.get((dataset, system)))
    ]
    write_text(out, to_csv(["dataset", "system", "seeds", *QUANTITIES, "devices"], rows))

    header = ["system", "seeds", *(name.replace("_", " ").replace("mib", "MiB") for name in QUANTITIES)]
    lines = ["# What every system costs", "", "Means over the seeds.", ""]
    for dataset in datasets:
        lines += [
            f"## {dataset}",
            "",
            devices_line(
                (" and ".join(sorted(names)), read_system(system).name)
                for (about, system), names in devices.items()
                if about == dataset
            ),
            "",
            f"| {' | '.join(header)} |",
            "|---|" + "---:|" * (len(header) - 1),
        ]
        for name, system, *cells, _ in rows:
            if name == dataset:
                lines.append(f"| {read_system(str(system)).name} | {' | '.join(map(_grouped, cells))} |")
        lines.append("")
    write_text(out.with_suffix(".md"), "\n".join(lines).rstrip() + "\n")


def _mean(runs: Sequence[dict[str, Any]], name: str) -> str:
    """A quantity's mean over runs; empty where one of them has none, as GPU memory on a processor."""
    values = [run.get(name) for run in runs]
    known = [float(value) for value in values if value is not None]
    return f"{statistics.fmean(known):.{QUANTITIES[name]}f}" if len(known) == len(values) else ""


def _grouped(cell: object) -> str:
    """Thousands apart, decimals as they are."""
    whole, point, decimals = str(cell).partition(".")
    return f"{int(whole):,}{point}{decimals}" if whole else ""
