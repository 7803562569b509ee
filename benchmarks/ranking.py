"""Ranks of held-out items among the whole catalogue, against the roofline."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.roofline import Work, best, count_operations, measure_rates
from benchmarks.steps import without_padding
from benchmarks.table import Row, apart, held
from mmm4rec.evaluation.ranking import rank_targets
from mmm4rec.planning.measure import invent

DOMAINS = {"quick": ("scientific",), "full": ("scientific", "office", "kindle")}
SYSTEMS = ("sasrec", "mmm4rec")
USERS = {"cpu": 4096, "cuda": 87_346}


def rows(size: str, device: str) -> Iterator[Row]:
    """Ranking of so many users at catalogues of the paper."""
    for system in SYSTEMS:
        for domain in DOMAINS[size]:
            items, users, seconds, memory, limit = apart(measure, system, domain, device)
            yield Row(f"ranking, {system}", items, "items", seconds, "roofline", limit, memory, f"{users} users")


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
