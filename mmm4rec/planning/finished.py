"""What this user's own finished jobs took: runs, and the benchmarks of all other steps."""

import csv
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmm4rec.errors import UserError
from mmm4rec.io import read_json

#: of a training stage, what changes how long it goes on and not how long an epoch takes
LENGTH = ("epochs", "patience", "stop_metric", "learning_rate", "weight_decay", "max_grad_norm")


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        settings: its config.json.
        epoch: mean seconds of an epoch, without validation, of all devices that shared it; 0 if nothing was trained.
        validation: mean seconds of a validation; 0 if there was none.
        epochs: of fine-tuning, or of pre-training.
        indomain: mean seconds of an epoch of the in-domain stage; 0 if there is none.
        on_gpu: whether it ran on one.
        device: its name.
        memory: peak memory of the process, MiB.
        gpu_memory: peak memory on the GPU, MiB; 0 on a CPU.
    """

    settings: dict[str, Any]
    epoch: float
    validation: float
    epochs: int
    indomain: float
    on_gpu: bool
    device: str
    memory: float
    gpu_memory: float

    @property
    def about(self) -> str:
        """Its domain, or the sources of a pre-training."""
        return str(self.settings.get("domain") or about_sources(self.settings["sources"]))

    @property
    def stopped_by_itself(self) -> bool:
        """Whether it is a fine-tuning that its validation ended, not the limit of its epochs."""
        stage = self.settings.get("stage")
        return "domain" in self.settings and stage is not None and self.epochs < stage["epochs"]


def about_sources(sources: Iterable[str]) -> str:
    """One name for all of the sources."""
    return "+".join(sources)


def same_work(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a training row is the same work in two runs of a system: of their settings, what changes it is equal."""
    same = all(one.get(key) == other.get(key) for key in ("settings", "precision"))
    return same and all(_work(one.get(stage)) == _work(other.get(stage)) for stage in ("stage", "indomain"))


def _work(stage: dict[str, Any] | None) -> dict[str, Any]:
    return {k: v for k, v in (stage or {}).items() if k not in LENGTH}


def finished_runs(roots: Iterable[Path], damaged: Literal["error", "skip"] = "error") -> list[Finished]:
    """Every finished run below some folders.

    Args:
        roots: the folders.
        damaged: what to do about a run whose files are damaged.

    Raises:
        UserError: a folder is not there, or a run's files are damaged.
    """
    found = []
    for root in roots:
        if not root.exists():
            raise UserError(f"{root}: no such folder; name one that holds finished runs")
        for path in sorted(root.rglob("metrics.json")):
            try:
                found.append(_read(path.parent))
            except (FileNotFoundError, KeyError, ValueError) as error:
                if damaged == "skip":
                    continue
                raise UserError(f"{path.parent}: not a whole run ({error!r}); remove it or make it again") from None
    return found


def _read(folder: Path) -> Finished:
    metrics = read_json(folder / "metrics.json")
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    indomain = metrics.get("indomain")
    made = read_json(folder / "environment.json")
    gpu = metrics["peak_gpu_memory_mib"]
    return Finished(
        settings=read_json(folder / "config.json"),
        epoch=made.get("processes", 1) * statistics.fmean(float(row["seconds"]) for row in rows) if rows else 0.0,
        validation=statistics.fmean(float(row.get("valid_seconds") or 0) for row in rows) if rows else 0.0,
        epochs=metrics["epochs"],
        indomain=indomain["seconds"] / indomain["epochs"] if indomain else 0.0,
        on_gpu=gpu is not None,
        device=made["device"],
        memory=metrics["peak_memory_mib"],
        gpu_memory=gpu or 0.0,
    )


def benchmarks(results: Path, rule: str) -> dict[str, tuple[float, float]]:
    """Seconds and peak memory (MiB) of a rule's finished jobs, by domain, or by "" for a rule with one job."""
    folder = results / "benchmarks"
    alone = folder / f"{rule}.tsv"
    paths = {"": alone} if alone.exists() else {path.stem: path for path in sorted((folder / rule).glob("*.tsv"))}
    found = {}
    for name, path in paths.items():
        with path.open(encoding="utf-8", newline="") as file:
            row = next(csv.DictReader(file, delimiter="\t"), None)
        if row:
            memory = row["max_rss"]
            found[name] = (float(row["s"]), 0.0 if memory in ("-", "NA") else float(memory))
    return found
