"""A pre-training step of MMM4Rec by several processes, a device or a core each, against one process."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.roofline import best, measure_rates, profile
from benchmarks.steps import Step
from benchmarks.table import Row, held, processes
from mmm4rec.planning.measure import invent
from mmm4rec.training.distributed import divide_rows

#: where, and of how many batches a step is; None: as many as the paper's
SIZES = {"quick": ("scientific", 1), "full": ("office", None)}


def rows(size: str, device: str) -> Iterator[Row]:
    """One process, then twice as many as long as there are devices; on a CPU one and two."""
    domain, batches = SIZES[size]
    alone = 0.0
    for number in counts(2 if device == "cpu" else torch.cuda.device_count()):
        n_rows, seconds, memory, limit, spent = together(number, domain, batches, device)
        remark = f"{n_rows} rows of {domain}; memory: of one process; {spent}"
        if number == 1:
            alone = seconds
            yield Row("pretrain step", 1, "processes", seconds, "roofline", limit, memory, remark)
        else:
            against = "one process over their number"
            yield Row("pretrain step", number, "processes", seconds, against, alone / number, memory, remark)


def counts(most: int) -> list[int]:
    """Powers of two."""
    return [2**k for k in range(most.bit_length())]


def together(number: int, domain: str, batches: int | None, device: str) -> tuple[int, float, float, float, str]:
    """What ``measure`` gives in the first of ``number`` processes that train together."""
    with tempfile.TemporaryDirectory() as folder, processes(number) as pool:
        meeting = Path(folder) / "meeting"
        ranks = [pool.submit(measure, k, number, meeting, domain, batches, device) for k in range(number)]
        first, *_ = [rank.result() for rank in ranks]
        return first


def measure(
    rank: int, number: int, meeting: Path, domain: str, batches: int | None, device: str
) -> tuple[int, float, float, float, str]:
    """Rows, seconds and MiB of an optimiser step, the least seconds of one on one device, and what it is spent on.

    Args:
        rank: which of the processes this is.
        number: how many there are.
        meeting: a file, not there yet, by which they find each other.
        domain: of the paper, whose size the data have.
        batches: of a step; None for the paper's.
        device: ``cpu`` or ``cuda``.
    """
    where = torch.device(device, rank) if device == "cuda" else torch.device(device)
    if number > 1:
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=meeting.as_uri(), rank=rank, world_size=number)
    step = Step(invent("mmm4rec", "pretrain", domain, where), batches)
    limit = step.work().seconds(measure_rates(where)) if number == 1 else 0.0
    divide_rows(step.subject.system, seed=0)
    seconds, memory = held(lambda: best(step, where, 3), device)
    spent = profile(step, where)
    if number > 1:
        dist.barrier()
        dist.destroy_process_group()
    return len(step.rows), seconds, memory, limit, spent
