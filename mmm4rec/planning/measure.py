"""Measure how fast each system trains and ranks, on invented catalogues of the paper's sizes, and the steps before.

A catalogue's size is the one thing that differs between two measurements of a system: `plan` draws the line through
them. Every measurement runs in a process of its own, so that its peak memory is its own.
"""

import dataclasses
import logging
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmm4rec.config import StageSettings, SystemFile, read_system
from mmm4rec.device import resolve_device
from mmm4rec.evaluation.ranking import rank_targets
from mmm4rec.models.base import Catalogue, System, build, model_class
from mmm4rec.planning.rates import STEPS, Rate, latest, read_rates, write_rates
from mmm4rec.provenance import environment
from mmm4rec.reporting.table1 import published_sizes
from mmm4rec.training.data import Events
from mmm4rec.training.finetune import freeze
from mmm4rec.training.loop import Loss, finetune_loss, pretrain_loss, train
from mmm4rec.training.run import load_pretrained
from mmm4rec.versions import VERSIONS

log = logging.getLogger(__name__)

#: domains of the paper whose sizes are measured at, a small and a large one
SIZES = {"target": ("scientific", "office"), "source": ("office", "kindle")}
WIDTH = 768  # of the features, as of SigLIP's
DISTINCT = 4096  # rows of features that differ; they repeat beyond
RANKED = 1024  # users
SHORTEST = 5  # events of a user, as after the paper's 5-core


def measure(out: Path, systems: Sequence[str], *, device: str, steps: int) -> None:
    """Measure every stage of systems at two sizes, and steps at one, and write the rates to ``out``.

    Rates of ``out`` that are not measured anew stay; the file is written after each measurement, so that a stopped call
    loses only the one under way.

    Args:
        out: CSV file, as ``mmm4rec.planning.rates`` reads it.
        systems: keys, and steps (``mmm4rec.planning.rates.STEPS``).
        device: ``auto``, ``cpu`` or ``cuda``; on a CPU one thread is measured.
        steps: optimiser steps that are timed, after one to warm up.
    """
    for key in systems:
        if key in STEPS:
            calls = [partial(measure_step, key, what, device) for what in STEPS[key]]
        else:
            calls = [
                partial(measure_one, key, stage, domain, device, steps)
                for stage in stages(read_system(key))
                for domain in SIZES["source" if stage == "pretrain" else "target"]
            ]
        for call in calls:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                rate = process.submit(call).result()
            write_rates(out, latest(read_rates(out) if out.exists() else [], [rate]))
            of_items = f", {rate.items} items" if rate.items else ""
            log.info("%s, %s%s: %.3g s for %d rows", *rate.key, of_items, rate.step, rate.rows)


def stages(system: SystemFile) -> list[str]:
    """What there is to measure of a system; ``scratch`` where pre-training would have frozen some of it."""
    freezes = model_class(system.model).frozen is not System.frozen
    asked = {
        "pretrain": system.pretrain and not system.pretrained_as,
        "indomain": system.indomain,
        "finetune": True,
        "scratch": system.pretrain and freezes,
    }
    return [stage for stage, wanted in asked.items() if wanted]


def measure_one(key: str, stage: str, domain: str, device: str, steps: int) -> Rate:
    """One measurement, in this process.

    Args:
        key: the system's.
        stage: one of ``stages``.
        domain: of the paper's Table I: its number of items, and its users' mean length.
        device: ``auto``, ``cpu`` or ``cuda``.
        steps: optimiser steps that are timed.
    """
    where = resolve_device(device)
    torch.set_num_threads(1)
    clock = _gpu_clock if where.type == "cuda" else time.process_time  # other work on the machine costs no CPU time
    subject = invent(key, stage, domain, where)
    step, start = _train(subject, clock, steps) if subject.how else (0.0, 0.0)
    tables = ranked = 0.0
    if stage in ("finetune", "scratch"):
        tables, ranked = _rank(subject, clock)
    return _rate(
        where,
        system=key,
        stage=stage,
        items=subject.events.n_items,
        rows=len(subject.rows),
        step=step,
        start=start,
        tables=tables,
        ranked=RANKED,
        rank=ranked,
        weights=sum(t.numel() * t.element_size() for t in subject.system.state_dict().values()),
        steps=steps,
        version=subject.file.version,
    )


def measure_step(key: str, what: str, device: str) -> Rate:
    """One measurement of a step that trains nothing, in this process; preparation is always on the CPU."""
    from mmm4rec.planning import measure_steps  # needs polars and open_clip, which a machine for training may lack

    where = torch.device("cpu") if key == "prepare" else resolve_device(device)
    clock = _gpu_clock if where.type == "cuda" else time.process_time
    if key == "prepare":
        n, seconds = measure_steps.prepare_ratings(clock)
    else:
        n, seconds = measure_steps.encode(what, where, clock)
    return _rate(where, system=key, stage=what, rows=n, step=seconds, steps=1, version=VERSIONS[key])


def _rate(where: torch.device, **measured: Any) -> Rate:
    """What was measured, with what it was measured on. Of numbers that are not given there is nothing."""
    on_gpu = where.type == "cuda"
    made_with = environment([], where.type)
    nothing = dict.fromkeys(("items", "start", "tables", "ranked", "rank", "weights"), 0)
    return Rate(
        **nothing | measured,
        device=made_with["device"] if on_gpu else "cpu, 1 thread",
        memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        gpu_memory=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0,
        processor=made_with["device"],
        torch=made_with["packages"]["torch"],
        date=datetime.now(UTC).date().isoformat(),
        commit=made_with["commit"] or "",
    )


@dataclasses.dataclass(frozen=True)
class Subject:
    """A system in a stage, on an invented domain.

    Attributes:
        system: on the device.
        file: its settings file.
        stage: one of ``stages``.
        how: the stage's settings; None: nothing is trained.
        events: on the device.
        rows: [R] int64 event indices in the host's memory, the rows to train on.
    """

    system: System
    file: SystemFile
    stage: str
    how: StageSettings | None
    events: Events
    rows: Tensor

    @property
    def time_aware(self) -> bool:
        """Whether rows come with their times."""
        return "time" in self.file.reads

    @property
    def loss(self) -> Loss:
        """The stage's."""
        return pretrain_loss if self.stage in ("pretrain", "indomain") else finetune_loss


def invent(
    key: str, stage: str, domain: str, device: torch.device, users: int = RANKED, n_rows: int | None = None
) -> Subject:
    """A system as it is at the beginning of a stage, with rows to train on.

    Args:
        key: the system's.
        stage: one of ``stages``.
        domain: of the paper's Table I: its number of items, and its users' mean length.
        device: where all of it lies.
        users: there are at least so many.
        n_rows: to train on; None: as many as one optimiser step takes.
    """
    torch.manual_seed(0)
    file, pretraining = read_system(key), stage == "pretrain"
    how = getattr(file, "finetune" if stage == "scratch" else stage)
    size = published_sizes(domain)
    assert size is not None, domain
    if n_rows is None:
        n_rows = how.batch_size * how.accumulate if how else 0
    mean_length = size["interactions"] / size["users"]
    events = invented_events(size["items"], mean_length, n_rows, users, pretraining=pretraining)
    catalogue = invented_catalogue(file, events)
    system = build(file.model, file.settings, catalogue, pretraining=pretraining)
    if stage == "finetune" and file.pretrain:
        _transfer(system, read_system(file.pretrained_as or key), catalogue)
    if stage == "finetune" and (file.pretrain or file.indomain):
        freeze(system)
    rows = events.all_rows() if pretraining else events.train_rows()
    return Subject(system.to(device), file, stage, how, events.to(device), rows[:n_rows])


def invented_events(n_items: int, mean_length: float, n_rows: int, users: int = RANKED, *, pretraining: bool) -> Events:
    """Users who take items at random, few items often and many rarely, days apart.

    Args:
        n_items: of the catalogue.
        mean_length: events a user; none has fewer than five.
        n_rows: at least so many training rows.
        users: at least so many, to be ranked.
        pretraining: rows are those of pre-training.
    """
    draw = torch.Generator().manual_seed(0)
    n_users = int(max(users, 1.2 * n_rows / (mean_length - (1 if pretraining else 3)))) + 1
    geometric = torch.empty(n_users).geometric_(1 / (1 + mean_length - SHORTEST), generator=draw).long()
    lengths = SHORTEST - 1 + geometric
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    n_events = int(lengths.sum())
    popularity = torch.arange(1, n_items + 1, dtype=torch.float64) ** -0.7
    steps = torch.randint(1, 30 * 86_400, (n_events,), generator=draw)
    return Events(
        items=1 + torch.searchsorted(popularity.cumsum(0) / popularity.sum(), _uniform(n_events, draw)),
        times=1_400_000_000 + steps.cumsum(0) % 100_000_000,
        timed=torch.ones(n_events, dtype=torch.bool),
        first=offsets[:-1].repeat_interleave(lengths),
        offsets=offsets,
        users=torch.arange(1, n_users + 1),
        n_items=n_items,
    )


def _uniform(n: int, draw: torch.Generator) -> Tensor:
    return torch.rand(n, generator=draw, dtype=torch.float64).clamp(max=1 - 1e-9)


def invented_catalogue(file: SystemFile, events: Events) -> Catalogue:
    """Random features of what the system reads; every other item has no image."""
    n_items = events.n_items
    values = torch.nn.functional.normalize(torch.randn(DISTINCT, WIDTH)).half()[torch.arange(n_items + 1) % DISTINCT]
    known = Catalogue(n_items, has_time=True, all_timed=True, popularity=events.popularity())
    has_text = torch.arange(n_items + 1) > 0
    has_image = has_text & (torch.arange(n_items + 1) % 2 == 0)
    return dataclasses.replace(
        known,
        text=values * has_text[:, None] if "text" in file.reads else None,
        image=values.flip(1) * has_image[:, None] if "image" in file.reads else None,
        has_text=has_text,
        has_image=has_image,
    )


def _transfer(system: System, source: SystemFile, catalogue: Catalogue) -> None:
    """Begin as after pre-training, so that what is frozen then is frozen here."""
    pretrained = build(source.model, source.settings, catalogue, pretraining=True)
    with tempfile.TemporaryDirectory() as folder:
        weights = {name: tensor.contiguous().clone() for name, tensor in pretrained.state_dict().items()}
        save_file(weights, Path(folder) / "model.safetensors")
        load_pretrained(system, Path(folder))


def _train(subject: Subject, clock: Callable[[], float], steps: int) -> tuple[float, float]:
    """Seconds of an optimiser step, and of what each epoch begins with.

    On a CPU a step does the same for each of its batches, and once more what is done once: of many, two are timed.
    """
    system, how = subject.system, subject.how
    assert how is not None
    now = clock()
    system.start_epoch(1)
    start = clock() - now
    system.start_epoch = lambda epoch: None  # type: ignore[method-assign]

    def seconds(batches: int) -> float:
        """Of a step of so many batches; an epoch here is one step, and the first is to warm up."""
        ends: list[float] = []
        train(
            system,
            subject.events,
            subject.rows[: batches * how.batch_size],
            how.model_copy(update={"epochs": steps + 1, "accumulate": batches}),
            subject.loss,
            seed=0,
            time_aware=subject.time_aware,
            whole_catalogue=subject.stage != "pretrain",
            on_epoch=lambda epoch, row: ends.append(clock()),
        )
        return statistics.median(end - begin for begin, end in pairwise(ends))

    if subject.events.items.is_cuda:  # which encodes batches together
        return seconds(how.accumulate), start
    one = seconds(1)
    more = seconds(2) - one if how.accumulate > 1 else 0.0
    return one + (how.accumulate - 1) * max(more, 0.0), start


def _rank(subject: Subject, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of the item tables of the whole catalogue, and of ranking ``RANKED`` users with them."""
    system, events = subject.system, subject.events
    system.eval()

    def rank() -> None:
        rank_targets(system, events, events.test_rows()[:RANKED], time=subject.time_aware)

    rank()  # to warm up
    with torch.inference_mode():
        now = clock()
        system.item_tables()
        tables = clock() - now
    now = clock()
    rank()
    return tables, max(clock() - now - tables, 0.0)


def _gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
