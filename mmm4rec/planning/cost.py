"""What the jobs of a configuration cost: hours and memory, each with where the number comes from, and disk."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmm4rec.config import WITH_IMAGE, Config, bases, paper_domain, read_system, system_keys
from mmm4rec.data.registry import source
from mmm4rec.planning.disk import Disk, disk_space
from mmm4rec.planning.finished import Finished, about_sources, benchmarks, finished_runs, same_work
from mmm4rec.planning.jobs import Job, all_jobs
from mmm4rec.planning.rates import ENCODER, Rate, at_size, epoch_seconds, ranking_seconds
from mmm4rec.planning.sizes import Size, domain_size, union_size
from mmm4rec.reporting.published import published

TRAINING = ("pretrain", "finetune", "truncate")
MEASURED_STEPS = ("prepare", "images", "embed", "import_features", "with_image")  # their time goes with the items
#: in which the steps are shown
ORDER = dict.fromkeys(["demo", "download", "encoder", *MEASURED_STEPS, *TRAINING])
CPU, GPU = "CPU", "GPU"

Range = tuple[float, float, float]  # least, estimate, most


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


@dataclass(frozen=True)
class Estimate:
    """What one job takes."""

    device: str
    seconds: Range | None = None
    epochs: tuple[int, int, int] | None = None
    epochs_from: str = ""
    rate_from: str = ""
    memory: float | None = None
    gpu_memory: float | None = None


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
        UserError: a folder of ``runs`` is not there, or a finished run is damaged.
    """
    jobs = all_jobs(config)
    names = dict.fromkeys([*config.sources, *config.targets, *(job.domain for job in jobs if job.domain)])
    sizes = {name: domain_size(config, name) for name in names}
    # not the whole folder: results of other configurations may lie in it, those of the demo in `results/demo`
    own = [path for name in ("runs", "pretrained", "truncation") if (path := config.results / name).exists()]
    published_runs = finished_runs(elsewhere, damaged="skip")
    known = _KnownRates(rates, gpu, gpu_name)
    trainings = _Trainings(config, dict(sizes), finished_runs([*own, *runs]), published_runs, known)
    steps = _Steps(config, sizes, known)

    def estimate(job: Job) -> Estimate:
        return trainings.estimate(job) if job.stage else steps.estimate(job)

    return Plan(_lines(jobs, estimate), disk_space(config, jobs, sizes, trainings.weights), sizes, known.notes())


def _median_of(epochs: Sequence[int], kind: str) -> str:
    return f"median of {len(epochs)} {kind} run{'s' * (len(epochs) != 1)}"


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


class _KnownRates:
    """Rates of a CPU and of one GPU; remembers what has none on the GPU, though one is asked for."""

    def __init__(self, rates: Sequence[Rate], gpu: bool, gpu_name: str) -> None:
        self.gpu = gpu
        on_gpu = [r for r in rates if not r.device.startswith("cpu") and gpu_name.lower() in r.device.lower()]
        newest = max(on_gpu, key=lambda rate: rate.date, default=None)
        self.rates = {CPU: [r for r in rates if r.device.startswith("cpu")]}
        self.rates[GPU] = [r for r in on_gpu if newest and r.device == newest.device]
        self.without_gpu_rate: set[str] = set()

    def of(self, device: str, name: str, stage: str) -> list[Rate]:
        """Rates of a system in a stage, or of what is measured of a step; smallest catalogue first."""
        return sorted((r for r in self.rates[device] if r.key == (name, stage)), key=lambda rate: rate.items)

    def where_known(self, name: str, estimate: Callable[[str], Estimate]) -> Estimate:
        """An estimate on a GPU if that is asked for and any rate is known there, else on a CPU."""
        if self.gpu:
            found = estimate(GPU)
            if found.seconds:
                return found
            self.without_gpu_rate.add(name)
        return estimate(CPU)

    def notes(self) -> list[str]:
        """What a reader must know."""
        if not self.without_gpu_rate:
            return []
        names = ", ".join(sorted(self.without_gpu_rate))
        return [f"No GPU rate of {names}: hours of one CPU thread instead. `mmm4rec rates` on the GPU measures them."]


class _Steps:
    """Estimates of jobs that train nothing."""

    def __init__(self, config: Config, sizes: dict[str, Size | None], known: _KnownRates) -> None:
        self.config, self.sizes, self.known = config, sizes, known

    def estimate(self, job: Job) -> Estimate:
        """As its own job took before, else as those of other domains did, item by item, else by rates."""
        device = GPU if self.known.gpu and job.rule == "embed" else CPU
        name, finished = job.domain.removesuffix(WITH_IMAGE), benchmarks(self.config.results, job.rule)
        if name in finished and job.rule != "download":
            seconds, memory = finished[name]
            return Estimate(device, (seconds,) * 3, rate_from="own benchmarks", memory=memory)
        size = self.sizes.get(name)
        others = [(s / z.items, memory) for other, (s, memory) in finished.items() if (z := self.sizes.get(other))]
        if job.rule in MEASURED_STEPS and size and others:
            seconds = size.items * _middle(rate for rate, _ in others)
            memory = max(memory for _, memory in others)
            return Estimate(
                device, (seconds,) * 3, rate_from="own benchmarks of other domains, by items", memory=memory
            )
        if job.rule == "embed":
            return self.known.where_known(job.rule, lambda device: self._by_rates(device, job, size))
        return self._by_rates(CPU, job, size)

    def _by_rates(self, device: str, job: Job, size: Size | None) -> Estimate:
        amounts = self._amounts(job, size)
        rates = {what: self.known.of(device, job.rule, what) for what in amounts}
        if not amounts or not all(rates.values()):
            return Estimate(device, rate_from="no rate")
        seconds = sum(n * rates[what][0].step / rates[what][0].rows for what, n in amounts.items())
        measured = [rate for (rate,) in rates.values()]
        return Estimate(
            device,
            (seconds,) * 3,
            rate_from=f"rates of {measured[0].device}",
            memory=max(rate.memory for rate in measured) if job.rule == "embed" else None,  # else it grows with the job
            gpu_memory=max(rate.gpu_memory for rate in measured) or None,
        )

    def _amounts(self, job: Job, size: Size | None) -> dict[str, int]:
        """What a job reads, named as in ``STEPS``; nothing where that is not known, or not what was measured."""
        if job.rule == "prepare":
            spec = self.config.domains[job.domain]
            rows = source(spec.amazon, spec.edition, "ratings").rows if spec.amazon else None
            return {"ratings": rows} if rows else {}
        if job.rule == "embed" and self.config.encoder.source == ENCODER and size:
            return {"texts": size.items, "images": size.images}
        return {}


class _Trainings:
    """Estimates of pre-training and fine-tuning jobs."""

    def __init__(
        self,
        config: Config,
        sizes: dict[str, Size | None],
        finished: list[Finished],
        elsewhere: list[Finished],
        known: _KnownRates,
    ) -> None:
        self.config, self.sizes, self.finished, self.elsewhere, self.known = config, sizes, finished, elsewhere, known

    def size(self, job: Job) -> Size | None:
        """Size of a target, or of all sources."""
        if job.rule == "pretrain":
            return union_size(self.sizes[name] for name in self.config.sources)
        return self.sizes[job.domain]

    def estimate(self, job: Job) -> Estimate:
        """Of one job."""
        return self.known.where_known(job.system, lambda device: self._on(device, job))

    def shipped(self, device: str, job: Job, stage: str = "") -> list[Rate]:
        """Rates of a job's system and stage, smallest catalogue first.

        From scratch, where that is measured apart; of the system it is a variant of, where it is not measured itself.
        """
        stage = stage or job.stage
        scratch = stage == "finetune" and not job.settings["pretrained"]
        for system in (job.system, *bases(job.system)):
            for wanted in ("scratch", "finetune") if scratch else (stage,):
                if found := self.known.of(device, system, wanted):
                    return found
        return []

    def _on(self, device: str, job: Job) -> Estimate:
        size, stage = self.size(job), job.settings["stage"]
        own = [
            run
            for run in self.finished
            if same_work(run.settings, job.settings)
            and all(run.settings.get(key) == job.settings.get(key) for key in ("system", "pretrained"))
            and run.on_gpu == (device == GPU)
        ]
        about = job.domain or about_sources(job.settings["sources"])
        here = [run for run in own if run.about == about]
        epochs, epochs_from = self._epochs(job)
        memory, gpu_memory = self._memory(device, job, size, here)
        rest = {"epochs": epochs, "epochs_from": epochs_from, "memory": memory, "gpu_memory": gpu_memory}
        found = self._seconds(device, job, size, own, here)
        if found is None:
            why = "size unknown" if size is None else "no rate"
            return Estimate(device, rate_from=why, **rest)  # type: ignore[arg-type]
        (epoch, validation, indomain), rate_from = found
        once = 2 * validation if job.stage == "finetune" else 0.0  # validation and test items are ranked at the end
        if job.settings.get("indomain"):
            once += indomain * job.settings["indomain"]["epochs"]
        each = epoch + (validation if stage and job.stage == "finetune" else 0.0)
        least, likely, most = (once + n * each for n in epochs or (0, 0, 0))
        return Estimate(device, (least, likely, most), rate_from=rate_from, **rest)  # type: ignore[arg-type]

    def _seconds(
        self, device: str, job: Job, size: Size | None, own: list[Finished], here: list[Finished]
    ) -> tuple[Range, str] | None:
        """Seconds of an epoch, of a validation and of an epoch of the in-domain stage, and where they come from."""
        if timed := [run for run in here if run.epoch]:  # the ranking of a run that trains nothing is not timed
            scaled = (
                _middle(run.epoch for run in timed),
                _middle(run.validation for run in timed),
                _middle(run.indomain for run in timed),
            )
            return scaled, "own runs"
        if size is None:
            return None
        predicted = self._predicted(device, job, size)
        known = [(run, z) for run in own if (z := self._size_of(run)) and run.epoch]
        if predicted is None:
            if not known:
                return None
            # one catalogue tells nothing of how time grows with it: by rows and users alone
            scaled = (
                _middle(run.epoch / _rows(job, z) for run, z in known) * _rows(job, size),
                _middle(run.validation / z.users for run, z in known) * size.users,
                _middle(run.indomain / z.rows for run, z in known) * size.rows,
            )
            return scaled, "own runs on other domains, by rows"
        label = self._label(device, job)
        if not known:
            return predicted, label
        ratios = [
            run.epoch / before[0] for run, z in known if (before := self._predicted(device, job, z)) and before[0]
        ]
        ratio = _middle(ratios) if ratios else 1.0
        scaled = (predicted[0] * ratio, predicted[1] * ratio, predicted[2] * ratio)
        return scaled, f"own runs on other domains, scaled by {label}"

    def _predicted(self, device: str, job: Job, size: Size) -> Range | None:
        """The same, of measured rates."""
        rates = self.shipped(device, job)
        if not rates:
            return None
        if job.rule == "pretrain":
            return epoch_seconds(rates, size.items, size.all_rows), 0.0, 0.0
        before = self.shipped(device, job, "indomain")
        if job.settings.get("indomain") and not before:
            return None
        indomain = epoch_seconds(before, size.items, size.rows) if before else 0.0
        trained = epoch_seconds(rates, size.items, size.rows) if job.settings["stage"] else 0.0
        return trained, ranking_seconds(rates, size.items, size.users), indomain

    def _label(self, device: str, job: Job) -> str:
        rates, file = self.shipped(device, job), read_system(job.system)
        rate = rates[0]
        measured = {"settings": file.settings, "precision": "32-true"}
        for stage in ("indomain", job.stage):
            how = getattr(file, stage)
            measured["stage" if stage == job.stage else stage] = how and how.model_dump()
        label = f"rates of {rate.device}"
        if rate.system != job.system:
            label += f", of {rate.system}"
        if rate.items == rates[-1].items:
            label += f", at {rate.items} items alone"
        if not same_work(measured | ({} if job.stage == "finetune" else {"indomain": None}), job.settings):
            label += ", at other settings"
        version = read_system(rate.system).version
        return label + (f", of version {rate.version}" if rate.version != version else "")

    def _size_of(self, run: Finished) -> Size | None:
        """Size of what a finished run was trained on, if the configuration has these domains."""
        names = [run.about] if "domain" in run.settings else run.settings["sources"]
        for name in names:
            if name not in self.sizes and name.removesuffix(WITH_IMAGE) in self.config.domains:
                self.sizes[name] = domain_size(self.config, name)
        return union_size(self.sizes.get(name) for name in names)

    def _epochs(self, job: Job) -> tuple[tuple[int, int, int] | None, str]:
        """Least, likely and most epochs, and where the likely number comes from."""
        stage = job.settings["stage"]
        if not stage:
            return None, ""
        most, patience = stage["epochs"], stage["patience"]
        if patience is None or job.rule == "pretrain":
            return (most, most, most), "fixed"
        least = min(patience + 1, most)
        whole = job.domain.removesuffix(WITH_IMAGE)
        printed = published(5).get((paper_domain(self.config, whole) or "", job.system, "epochs_to_best"))
        runs, others = (
            [run.epochs for run in known if run.settings["system"] == job.system and run.stopped_by_itself]
            for known in (self.finished, self.elsewhere)
        )
        if printed is not None:
            likely, where = round(printed) + patience, "print of Table V"
        elif runs:
            likely, where = round(statistics.median(runs)), _median_of(runs, "finished")
        elif others:
            likely, where = round(statistics.median(others)), _median_of(others, "published")
        else:
            likely, where = most, "unknown: the most"
        return (least, min(max(likely, least), most), most), where

    def _memory(
        self, device: str, job: Job, size: Size | None, here: list[Finished]
    ) -> tuple[float | None, float | None]:
        """Peak memory in MiB, of the process and on the GPU."""
        if here:
            return max(run.memory for run in here), max(run.gpu_memory for run in here) or None
        rates = self.shipped(device, job) + (self.shipped(device, job, "indomain") if job.stage == "finetune" else [])
        if not rates or size is None:
            return None, None
        stages = [[rate for rate in rates if rate.stage == stage] for stage in dict.fromkeys(r.stage for r in rates)]
        found = [max(at_size(some, name, size.items) for some in stages) for name in ("memory", "gpu_memory")]
        return found[0], found[1] or None

    def weights(self, job: Job) -> int | None:
        """Bytes of the weights that a job writes."""
        size = self.size(job)
        rates = self.shipped(GPU, job) or self.shipped(CPU, job)
        file = read_system(job.system)
        if size is None or not rates or job.settings["settings"] != file.settings:
            return None
        return round(at_size(rates, "weights", size.items))


_middle = statistics.median


def _rows(job: Job, size: Size) -> int:
    return size.all_rows if job.rule == "pretrain" else size.rows
