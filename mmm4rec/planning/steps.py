"""What jobs that train nothing take."""

import statistics
from functools import cache, partial

from mmm4rec.config import WITH_IMAGE, Config
from mmm4rec.data.registry import source
from mmm4rec.planning.estimates import CPU, GPU, Estimate, KnownRates
from mmm4rec.planning.finished import benchmarks
from mmm4rec.planning.jobs import Job
from mmm4rec.planning.rates import ENCODER
from mmm4rec.planning.sizes import Size

BY_ITEMS = ("prepare", "images", "embed", "import_features", "with_image")  # their time goes with the items


class Steps:
    """Estimates of jobs that train nothing."""

    def __init__(self, config: Config, sizes: dict[str, Size | None], known: KnownRates) -> None:
        self.config, self.sizes, self.known = config, sizes, known
        self.finished = cache(partial(benchmarks, config.results))  # of a rule; its jobs share them

    def estimate(self, job: Job) -> Estimate:
        """As its own job took before, else as those of other domains did, item by item, else by rates."""
        device = GPU if self.known.gpu and job.rule == "embed" else CPU
        name, finished = job.domain.removesuffix(WITH_IMAGE), self.finished(job.rule)
        if name in finished and job.rule != "download":
            seconds, memory = finished[name]
            return Estimate(device, (seconds,) * 3, rate_from="own benchmarks", memory=memory)
        size = self.sizes.get(name)
        others = [(s / z.items, memory) for other, (s, memory) in finished.items() if (z := self.sizes.get(other))]
        if job.rule in BY_ITEMS and size and others:
            seconds = size.items * statistics.median(rate for rate, _ in others)
            memory = max(memory for _, memory in others)
            return Estimate(
                device, (seconds,) * 3, rate_from="own benchmarks of other domains, by items", memory=memory
            )
        if job.rule == "embed":
            return self.known.where_known(job.rule, lambda device: self._by_rates(device, job, size))
        return self._by_rates(CPU, job, size)

    def _by_rates(self, device: str, job: Job, size: Size | None) -> Estimate:
        amounts = self._amounts(job, size)
        measured = [rate for what in amounts for rate in self.known.of(device, job.rule, what)[:1]]
        if not amounts or len(measured) < len(amounts):
            return Estimate(device, rate_from="no rate")
        seconds = sum(n * rate.step / rate.rows for n, rate in zip(amounts.values(), measured, strict=True))
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
