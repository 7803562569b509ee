"""A whole epoch of MMM4Rec, as training takes it, at the sizes of the paper's runs."""

from collections.abc import Iterator

import torch

from benchmarks.roofline import measure_rates
from benchmarks.steps import Step
from benchmarks.table import Row, apart
from mmm4rec.planning.measure import invent
from mmm4rec.reporting.table1 import published_sizes
from mmm4rec.training.loop import train

#: the stages and where: `pretrain` is also the union of the paper's sources
DOMAINS = {"quick": {"finetune": "scientific"}, "full": {"finetune": "office", "pretrain": "pretrain"}}
#: optimiser steps at the most; a whole epoch takes a processor hours
STEPS = {"cpu": 2, "cuda": 1_000_000}
#: the last one is measured: a GPU's kernels are compiled in the first
EPOCHS = {"cpu": 1, "cuda": 2}


def rows(size: str, device: str) -> Iterator[Row]:
    """Fine-tuning at the largest target, pre-training on all sources."""
    for stage, domain in DOMAINS[size].items():
        (taken, whole, seconds, limit), memory = apart(measure, stage, domain, device)
        remark = f"all rows of {domain}" if taken == whole else f"of the {whole:,} rows of {domain}"
        yield Row(f"{stage} epoch", taken, "rows", seconds, "roofline", limit, memory, remark)


def measure(stage: str, domain: str, device: str) -> tuple[int, int, float, float]:
    """Rows that are trained on and rows that there are, seconds of an epoch and the least that it could take."""
    where = torch.device(device)
    rates = measure_rates(where)
    size = published_sizes(domain)
    assert size is not None, domain
    whole = size["interactions"] - (1 if stage == "pretrain" else 3) * size["users"]
    one = invent("mmm4rec", stage, domain, where)
    assert one.how is not None
    steps = min(STEPS[device], whole / len(one.rows))
    limit = steps * Step(one).work().seconds(rates)
    subject = invent("mmm4rec", stage, domain, where, n_rows=int(steps * len(one.rows)))
    history = train(
        subject.system,
        subject.events,
        subject.rows,
        one.how.model_copy(update={"epochs": EPOCHS[device]}),
        subject.loss,
        seed=0,
        time_aware=subject.time_aware,
        whole_catalogue=stage != "pretrain",
    )
    return len(subject.rows), whole, history.epochs[-1]["seconds"], limit
