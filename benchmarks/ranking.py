"""Ranks of held-out items among the whole catalogue, against the roofline and against sorting all scores."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.roofline import Work, best, count_operations, measure_rates
from benchmarks.steps import without_padding
from benchmarks.table import Row, apart, held
from mmm4rec.evaluation.ranking import rank_targets
from mmm4rec.planning.measure import Subject, invent

DOMAINS = {"quick": ("scientific",), "full": ("scientific", "office", "kindle")}
SYSTEMS = ("sasrec", "mmm4rec")
USERS = {"cpu": 4096, "cuda": 87_346}
SORTED_AT_ONCE = 1024  # users whose scores stand in memory at once, as large as evaluation batches usually are


def rows(size: str, device: str) -> Iterator[Row]:
    """Ranking of so many users at catalogues of the paper."""
    for system in SYSTEMS:
        for domain in DOMAINS[size]:
            items, users, seconds, memory, limit = apart(measure, system, domain, device)
            yield Row(f"ranking, {system}", items, "items", seconds, "roofline", limit, memory, f"{users} users")
            rival, beside = apart(measure_sorting, system, domain, device)
            remark = f"{users} users; sorting holds {beside:.0f} MiB"
            yield Row(f"ranking, {system}", items, "items", seconds, "all scores sorted", rival, memory, remark)


def measure(system: str, domain: str, device: str) -> tuple[int, int, float, float, float]:
    """Items, users, seconds, MiB and the least seconds of ranking them."""
    where = torch.device(device)
    subject = invent(system, "finetune", domain, where, users=USERS[device])
    targets = subject.events.test_rows()[: USERS[device]]

    def rank() -> None:
        rank_targets(subject.system, subject.events, targets, time=subject.time_aware)

    seconds, memory = held(lambda: best(rank, where, 3), device)
    model, events = subject.system.eval(), subject.events
    batch = events.batch(targets, model.max_length, time=subject.time_aware, target_time=model.target_time_in_row)

    @torch.inference_mode()
    def encode() -> Tensor:
        return model.users(model.item_tables(), batch)

    with without_padding():
        encoding = count_operations(encode)
    # Of each user and item a product of their vectors; that blocks with targets are scored twice is not in the least.
    scores = 2 * len(targets) * events.n_items * encode().shape[1]
    read = sum(v.numel() * v.element_size() for v in (*model.parameters(), *model.buffers()))
    limit = Work(encoding + scores, read).seconds(measure_rates(where))
    return events.n_items, len(targets), seconds, memory, limit


def by_sorting(subject: Subject, targets: Tensor) -> Tensor:
    """Ranks [R] of targets [R], the way the field does it: the place of each among all scores in order."""
    model, events = subject.system.eval(), subject.events
    ranks = []
    with torch.inference_mode():
        tables = model.item_tables()
        for some in targets.split(SORTED_AT_ONCE):
            rows = events.batch(some, model.max_length, time=subject.time_aware, target_time=model.target_time_in_row)
            order = model.scores(tables, model.users(tables, rows)).argsort(1, descending=True)
            ranks.append((order == rows.targets[:, None] - 1).nonzero()[:, 1] + 1)
    return torch.cat(ranks)


def measure_sorting(system: str, domain: str, device: str) -> tuple[float, float]:
    """Seconds and MiB of the same by sorting."""
    where = torch.device(device)
    subject = invent(system, "finetune", domain, where, users=USERS[device])
    targets = subject.events.test_rows()[: USERS[device]]
    return held(lambda: best(lambda: by_sorting(subject, targets), where, 3), device)
