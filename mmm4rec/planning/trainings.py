"""What pre-training and fine-tuning jobs take."""

import statistics
from collections.abc import Sequence

from mmm4rec.config import WITH_IMAGE, Config, bases, paper_domain, read_system
from mmm4rec.planning.estimates import CPU, GPU, Estimate, KnownRates, Range
from mmm4rec.planning.finished import Finished, about_sources, same_work
from mmm4rec.planning.jobs import Job
from mmm4rec.planning.rates import Rate, at_size, epoch_seconds, ranking_seconds
from mmm4rec.planning.sizes import Size, domain_size, union_size
from mmm4rec.reporting.published import published


class Trainings:
    """Estimates of pre-training and fine-tuning jobs."""

    def __init__(
        self,
        config: Config,
        sizes: dict[str, Size | None],
        finished: list[Finished],
        elsewhere: list[Finished],
        known: KnownRates,
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


def _median_of(epochs: Sequence[int], kind: str) -> str:
    return f"median of {len(epochs)} {kind} run{'s' * (len(epochs) != 1)}"
