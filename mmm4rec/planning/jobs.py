"""The jobs of a configuration that take time or disk, as the workflow makes them, and which of them are done.

Tables, figures and pages are made of them in seconds each and are not counted.

What is needed is read off the configuration, not off Snakemake: building its graph takes longer than everything else
here, and its jobs do not say what they are about. A test holds the counts of both together.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmm4rec.config import (
    PRETRAINING,
    WITH_IMAGE,
    Config,
    all_table_numbers,
    embed_settings,
    features_path,
    figure2_unasked,
    finetune_settings,
    pretrain_key,
    pretrain_settings,
    raw_files,
    reads_features,
    table_domains,
    table_systems,
    truncation_settings,
    truncations,
)
from mmm4rec.data.registry import DEMO, raw_path
from mmm4rec.io import read_json

#: what a run's config.json holds besides its settings
INPUTS = ("time", "domain_path", "features_path", "features", "pretraining", "attributes")


@dataclass
class Job:
    """One job of the workflow.

    Attributes:
        rule: its rule.
        outputs: those of its files that other jobs read; Snakemake misses no others.
        needs: jobs whose files it reads.
        settings: of a training, as its run's config.json should hold them.
        pretraining: what it starts from, likewise.
        domain: what it is about, where that is one domain.
        system: what is trained.
        changed: whether its finished output was made with other settings.
        target: whether its output is asked for itself, and not only for what is made of it.
        state: ``done``, ``to do`` or ``out of date``: finished, but to be made again.
    """

    rule: str
    outputs: list[Path]
    needs: list["Job"] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    pretraining: dict[str, Any] | None = None
    domain: str = ""
    system: str = ""
    changed: bool = False
    target: bool = False
    state: str = "done"

    @property
    def stage(self) -> str:
        """What a training does: it pre-trains or fine-tunes; empty where nothing is trained."""
        return {"pretrain": "pretrain", "finetune": "finetune", "truncate": "finetune"}.get(self.rule, "")

    @property
    def exists(self) -> bool:
        """Whether all that is read of it is there."""
        return all(path.exists() for path in self.outputs)


def all_jobs(config: Config) -> list[Job]:
    """Every job behind all tables and figures, with its state; those first whose files others read."""
    return _Jobs(config).all()


class _Jobs:
    """Makes each job once."""

    def __init__(self, config: Config) -> None:
        self.config, self.made = config, dict[str, Job]()
        self.raw = raw_files(config)

    def all(self) -> list[Job]:
        config = self.config
        reading = next((system for system in config.systems if reads_features(config, system)), None)
        self._domains([*config.sources, *config.targets], reading)  # Table I
        for number in all_table_numbers(config):
            for domain in table_domains(config, number):
                for system in table_systems(config, number):
                    for seed in config.seeds:
                        self._finetune(system, domain, seed)
        if figure2_unasked(config):
            for system, last, seed in truncations(config):
                self._truncate(system, last, seed)
        jobs = list(self.made.values())
        _mark(jobs)
        return jobs

    def _job(self, rule: str, outputs: Iterable[Path], needs: Iterable[Job | None] = (), **more: Any) -> Job:
        outputs = list(outputs)
        key = str(outputs[0])
        if key not in self.made:
            self.made[key] = Job(rule, outputs, [job for job in needs if job], **more)
        return self.made[key]

    def _raw(self, path: Path) -> Job | None:
        """A raw file; None where it is a file that the user brought."""
        category = self.raw[path][0]
        if category.startswith(DEMO):
            return self._job("demo", [p for p, (name, _, _) in self.raw.items() if name.startswith(DEMO)])
        return self._job("download", [path])

    def _prepared(self, domain: str) -> Job:
        folder = self.config.results / "domains" / domain
        outputs = [folder / "interactions.parquet", folder / "items.parquet"]
        if domain.endswith(WITH_IMAGE):
            whole = domain.removesuffix(WITH_IMAGE)
            needs = [self._prepared(whole), self._features(whole)]
            return self._job("with_image", [*outputs, folder / "features.parquet"], needs, domain=domain)
        spec, raw = self.config.domains[domain], self.config.raw
        kinds = ("ratings", "metadata") if spec.amazon else ()
        files = [self._raw(raw_path(raw, str(spec.amazon), spec.edition, kind)) for kind in kinds]  # type: ignore[arg-type]
        return self._job("prepare", outputs, files, domain=domain)

    def _features(self, domain: str) -> Job:
        config, path = self.config, features_path(self.config, domain)
        if domain.endswith(WITH_IMAGE):
            return self._prepared(domain)
        if config.domains[domain].features is not None:
            return self._job("import_features", [path], [self._prepared(domain)], domain=domain)
        prepared = self._prepared(domain)
        manifest = config.results / "images" / domain / "manifest.parquet"
        images = self._job("images", [manifest], [prepared], domain=domain)
        record = config.encoder.folder / config.encoder.name / "encoder.json"
        other = record.exists() and read_json(record)["source"] != config.encoder.source
        encoder = self._job("encoder", [record], changed=other)
        changed = path.exists() and _other_features(path, embed_settings(config, domain))
        return self._job("embed", [path], [prepared, images, encoder], domain=domain, changed=changed)

    def _domains(self, domains: Iterable[str], system: str | None) -> list[Job]:
        """Prepared domains, and their features if the system reads them."""
        domains = list(domains)
        features = system is not None and reads_features(self.config, system)
        return [self._prepared(d) for d in domains] + [self._features(d) for d in domains if features]

    def _pretrain(self, system: str) -> Job:
        folder = self.config.results / "pretrained" / system
        settings = pretrain_settings(self.config, system)
        needs = self._domains(self.config.sources, system)
        return self._training("pretrain", folder / "model.safetensors", needs, settings)

    def _finetune(self, system: str, domain: str, seed: int) -> Job:
        folder = self.config.results / "runs" / domain / system / f"seed_{seed}"
        settings = finetune_settings(self.config, system, domain, seed)
        start = pretrain_key(self.config, system)
        needs = [*self._domains([domain], system), *([self._pretrain(start)] if start else [])]
        pretraining = pretrain_settings(self.config, start) if start else None
        return self._training("finetune", folder / "metrics.json", needs, settings, pretraining)

    def _truncate(self, system: str, last: int, seed: int) -> Job:
        domain = self.config.fig2.domain
        folder = self.config.results / "truncation" / domain / system / f"last_{last}" / f"seed_{seed}"
        settings = truncation_settings(self.config, system, domain, last, seed)
        return self._training("truncate", folder / "metrics.json", self._domains([domain], system), settings)

    def _training(
        self,
        rule: str,
        output: Path,
        needs: list[Job],
        settings: dict[str, Any],
        pretraining: dict[str, Any] | None = None,
    ) -> Job:
        return self._job(
            rule,
            [output],
            needs,
            settings=settings,
            pretraining=pretraining,
            domain=settings.get("domain", ""),
            system=settings["system"],
            target=rule != "pretrain",  # tables and figures do not say which runs they were made of
            changed=(output.parent / "config.json").exists()
            and not same_settings(output.parent, settings, pretraining),
        )


def same_settings(folder: Path, settings: dict[str, Any], pretraining: dict[str, Any] | None = None) -> bool:
    """Whether a finished run was made with these settings, and from such a pre-training where it says from which."""
    made = read_json(folder / "config.json")
    start = made.get("pretraining") or {}
    # runs of long ago say less of it
    from_such = not pretraining or all(start[key] == pretraining[key] for key in PRETRAINING if key in start)
    return from_such and {k: v for k, v in made.items() if k not in INPUTS} == json.loads(json.dumps(settings))


def _other_features(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a feature file says that it was made otherwise; its precision may stand in for the one asked for."""
    said = pq.read_schema(path).metadata or {}
    return any(said.get(key.encode()) != settings[key].encode() for key in ("encoder", "text_fields", "missing_image"))


def _mark(jobs: list[Job]) -> None:
    """Set the states. A file that is gone is missed only if something is still to be made of it."""
    run = {id(job) for job in jobs if job.changed or (job.target and not job.exists)}
    missing = {id(job) for job in jobs if not job.exists}
    size = -1
    while size != len(run):
        size = len(run)
        for job in jobs:
            if any(id(need) in run for need in job.needs):
                run.add(id(job))
            if id(job) in run:
                run |= {id(need) for need in job.needs} & missing
    for job in jobs:
        if id(job) in run:
            job.state = "to do" if id(job) in missing else "out of date"
