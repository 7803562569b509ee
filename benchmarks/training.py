"""A training step of MMM4Rec, against its roofline and against the same step computed in full, padding and all."""

from collections.abc import Iterator
from dataclasses import replace
from typing import cast
from unittest import mock

import torch
from torch import Tensor

from benchmarks.padded import padded_loss, plain
from benchmarks.roofline import best, measure_rates, profile
from benchmarks.steps import Step
from benchmarks.table import Row, apart, held
from mmm4rec.models.base import Batches, Rows, System, Tables
from mmm4rec.models.mmm4rec import MMM4Rec
from mmm4rec.planning.measure import Subject, invent
from mmm4rec.training import loop

DOMAINS = {"quick": ("scientific",), "full": ("scientific", "office")}
PRETRAINING = {"quick": ("office",), "full": ("office", "kindle")}
#: of the step that is measured; None: as many as the paper's, which share what is computed of the items
BATCHES = {"quick": 1, "full": None}


def rows(size: str, device: str) -> Iterator[Row]:
    """Fine-tuning and pre-training at catalogues of the paper."""
    for stage, domains in (("finetune", DOMAINS[size]), ("pretrain", PRETRAINING[size])):
        for domain in domains:
            items, n_rows, seconds, memory, limit, spent = apart(measure, stage, domain, BATCHES[size], device)
            yield Row(f"{stage} step", items, "items", seconds, "roofline", limit, memory, f"{n_rows} rows; {spent}")
    for domain in DOMAINS[size]:
        items, n_rows, seconds, rival, memory, spent = apart(measure_padded, domain, BATCHES[size], device)
        remark = f"{n_rows} rows; the reference: {memory:.0f} MiB; {spent}"
        yield Row("finetune step", items, "items", seconds, "padded reference", rival, remark=remark)


def measure(stage: str, domain: str, batches: int | None, device: str) -> tuple[int, int, float, float, float, str]:
    """Items, rows, seconds, MiB and the least seconds of an optimiser step, and what it is spent on."""
    where = torch.device(device)
    step = Step(invent("mmm4rec", stage, domain, where), batches)
    seconds, memory = held(lambda: best(step, where, 3), device)
    limit = step.work().seconds(measure_rates(where))
    return step.subject.events.n_items, len(step.rows), seconds, memory, limit, profile(step, where)


def measure_padded(domain: str, batches: int | None, device: str) -> tuple[int, int, float, float, float, str]:
    """Items, rows and seconds of an optimiser step; seconds and MiB of the same in full, and what it is spent on."""
    where = torch.device(device)
    subject = invent("mmm4rec", "finetune", domain, where)
    ours, full = Step(subject, batches), PaddedStep(subject, batches)
    seconds = best(ours, where, 2)
    rival, memory = held(lambda: best(full, where, 2), device)
    return subject.events.n_items, len(ours.rows), seconds, rival, memory, profile(full, where)


class PaddedStep(Step):
    """The step with `benchmarks.padded`: same rows and optimiser, equal weights; batch after batch."""

    def __init__(self, subject: Subject, batches: int | None) -> None:
        super().__init__(replace(subject, system=plain(cast(MMM4Rec, subject.system))), batches)
        self.loss = _padded

    def __call__(self) -> Tensor:
        """Take one."""
        with mock.patch.dict(loop.POSITIONS_AT_ONCE, cpu=0, cuda=0):
            return super().__call__()


def _padded(system: System, tables: Tables, rows: Rows, batches: Batches) -> Tensor:
    return padded_loss(cast(MMM4Rec, system), rows)
