"""What the jobs of a configuration cost: hours and memory, each with where the number comes from, and disk."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmm4rec.config import Config, system_keys
from mmm4rec.planning.disk import Disk, disk_space
from mmm4rec.planning.estimates import Estimate, KnownRates
from mmm4rec.planning.finished import finished_runs
from mmm4rec.planning.jobs import Job, all_jobs
from mmm4rec.planning.rates import Rate
from mmm4rec.planning.sizes import Size, domain_size
from mmm4rec.planning.steps import BY_ITEMS, Steps
from mmm4rec.planning.trainings import Trainings

#: in which the steps are shown
ORDER = dict.fromkeys(["demo", "download", "encoder", *BY_ITEMS, "pretrain", "finetune", "truncate"])


@dataclass
class Line:
    """Jobs of one step, of one system and one kind of device where it trains.

    Hours, memory and epochs are of what is left to do. Hours are None where nothing of it can be estimated;
    ``not_estimated`` jobs are not in them.
    """

    step: str
    system: str
    device: str
    jobs: int = 0
    done: int = 0
    out_of_date: int = 0
    not_estimated: int = 0
    hours_least: float | None = None
    hours: float | None = None
    hours_most: float | None = None
    epochs_least: int | None = None
    epochs_most: int | None = None
    epochs_from: str = ""
    rate_from: str = ""
    memory_mib: float | None = None
    gpu_memory_mib: float | None = None

    @property
    def left(self) -> int:
        """Jobs that are to be run."""
        return self.jobs - self.done


@dataclass
class Plan:
    """The whole of it."""

    lines: list[Line]
    disk: list[Disk]
    sizes: dict[str, Size | None]
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


DONE = (
    "What is done was made with these settings as far as runs, weights, features and the encoder tell. Those of "
    "prepared domains and pictures (`k_core`, `max_side`) are not compared: `snakemake --dry-run` compares all."
)


def make_plan(
    config: Config,
    rates: Sequence[Rate],
    *,
    gpu: bool,
    gpu_name: str = "",
    runs: Sequence[Path] = (),
    elsewhere: Sequence[Path] = (),
) -> Plan:
    """The plan of all tables of a configuration.

    Args:
        config: the configuration.
        rates: measured rates of any devices.
        gpu: plan for a GPU; steps without a rate on one are given in hours of a CPU.
        gpu_name: part of its name as in ``rates``; empty: the one measured last.
        runs: folders with further finished runs, whose times and epochs are known.
        elsewhere: folders with runs of other machines, of which the epochs alone count, where there are no others.

    Raises:
        UserError: a folder of ``runs`` is not there, a finished run is damaged, or there are no rates of such a GPU.
    """
    jobs = all_jobs(config)
    names = dict.fromkeys([*config.sources, *config.targets, *(job.domain for job in jobs if job.domain)])
    sizes = {name: domain_size(config, name) for name in names}
    # not the whole folder: results of other configurations may lie in it, those of the demo in `results/demo`
    own = [path for name in ("runs", "pretrained", "truncation") if (path := config.results / name).exists()]
    published_runs = finished_runs(elsewhere, damaged="skip")
    known = KnownRates(rates, gpu, gpu_name)
    trainings = Trainings(config, dict(sizes), finished_runs([*own, *runs]), published_runs, known)
    steps = Steps(config, sizes, known)

    def estimate(job: Job) -> Estimate:
        return trainings.estimate(job) if job.stage else steps.estimate(job)

    lines, disk = _lines(jobs, estimate), disk_space(config, jobs, sizes, trainings.weights)
    unseen = any(job.state == "done" and job.rule in ("prepare", "images") for job in jobs)
    return Plan(lines, disk, sizes, [*known.notes(), *([DONE] if unseen else [])])


def _lines(jobs: Iterable[Job], estimate: Callable[[Job], Estimate]) -> list[Line]:
    lines: dict[tuple[str, str, str], Line] = {}
    # those that are done last: they need no estimate, and stand in a line that is there already, if any is
    for job in sorted(jobs, key=lambda job: job.state == "done"):
        if job.state == "done":
            devices = [device for rule, system, device in lines if (rule, system) == (job.rule, job.system)]
            one = Estimate(devices[0] if devices else "")
        else:
            one = estimate(job)
        line = lines.setdefault((job.rule, job.system, one.device), Line(job.rule, job.system, one.device))
        line.jobs += 1
        line.done += job.state == "done"
        line.out_of_date += job.state == "out of date"
        if job.state == "done":
            continue
        line.rate_from = _both(line.rate_from, one.rate_from)
        line.memory_mib = _most(line.memory_mib, one.memory)
        line.gpu_memory_mib = _most(line.gpu_memory_mib, one.gpu_memory)
        if one.epochs:
            line.epochs_from = _both(line.epochs_from, one.epochs_from)
            line.epochs_least = min(line.epochs_least or one.epochs[0], one.epochs[0])
            line.epochs_most = max(line.epochs_most or 0, one.epochs[2])
        if one.seconds is None:
            line.not_estimated += 1
            continue
        least, seconds, most = (s / 3600 for s in one.seconds)
        line.hours_least = (line.hours_least or 0.0) + least
        line.hours = (line.hours or 0.0) + seconds
        line.hours_most = (line.hours_most or 0.0) + most
    rules, systems = list(ORDER), ["", *system_keys()]
    return sorted(lines.values(), key=lambda line: (rules.index(line.step), systems.index(line.system)))


def _both(one: str, other: str) -> str:
    return "; ".join(dict.fromkeys(part for part in (*one.split("; "), other) if part))


def _most(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value), default=None)
