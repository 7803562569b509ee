"""A whole epoch of MMM4Rec, as training takes it, at the sizes of the paper's runs."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.roofline import measure_rates
from benchmarks.steps import Step
from benchmarks.table import Row, apart, held
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
        taken, whole, seconds, memory, limit = apart(measure, stage, domain, device)
        remark = f"all rows of {domain}" if taken == whole else f"of the {whole:,} rows of {domain}"
        yield Row(f"{stage} epoch", taken, "rows", seconds, "roofline", limit, memory, remark)


def measure(stage: str, domain: str, device: str) -> tuple[int, int, float, float, float]:
    """Rows that are trained on and rows that there are, seconds and MiB of an epoch, and the least seconds of one."""
    where = torch.device(device)
    size = published_sizes(domain)
    assert size is not None, domain
    whole = size["interactions"] - (1 if stage == "pretrain" else 3) * size["users"]
    one = invent("mmm4rec", stage, domain, where)
    assert one.how is not None
    steps = min(STEPS[device], whole / len(one.rows))
    limit = steps * Step(one).work().seconds(measure_rates(where))
    subject = invent("mmm4rec", stage, domain, where, n_rows=int(steps * len(one.rows)))
    how = one.how.model_copy(update={"epochs": EPOCHS[device]})
    del one
    epochs = partial(
        train,
        subject.system,
        subject.events,
        subject.rows,
        how,
        subject.loss,
        seed=0,
        time_aware=subject.time_aware,
        whole_catalogue=stage != "pretrain",
    )
    history, memory = held(epochs, device)
    return len(subject.rows), whole, history.epochs[-1]["seconds"], memory, limit
