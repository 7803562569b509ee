"""Every system's training step against its roofline."""

from collections.abc import Iterator

import torch

from benchmarks.roofline import best, measure_rates, profile
from benchmarks.steps import Step
from benchmarks.table import Row, apart, held
from mmm4rec.config import read_system, system_keys
from mmm4rec.planning.measure import invent, stages

DOMAINS = {"pretrain": "office"}  # else scientific
QUICK = ("sasrec", "mmm4rec")


def rows(size: str, device: str) -> Iterator[Row]:
    """One batch of each system that trains, in each of its stages."""
    for key in QUICK if size == "quick" else system_keys():
        file = read_system(key)
        for stage in stages(file) if file.finetune else []:
            items, n_rows, seconds, memory, limit, spent = apart(measure, key, stage, device)
            yield Row(f"{key}, {stage}", items, "items", seconds, "roofline", limit, memory, f"{n_rows} rows; {spent}")


def measure(key: str, stage: str, device: str) -> tuple[int, int, float, float, float, str]:
    """Items, rows, seconds, MiB and the least seconds of a step of one batch, and what it is spent on."""
    where = torch.device(device)
    step = Step(invent(key, stage, DOMAINS.get(stage, "scientific"), where), 1)
    seconds, memory = held(lambda: best(step, where, 3), device)
    limit = step.work().seconds(measure_rates(where))
    return step.subject.events.n_items, len(step.rows), seconds, memory, limit, profile(step, where)
