"""The full-catalogue loss: time against the roofline and the plain one, and memory that stays level."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.roofline import Work, best, measure_rates
from benchmarks.table import Row, apart, peak_bytes, start_peak
from mmm4rec.nn.losses import full_cross_entropy

ROWS, WIDTH = 1024, 256
SIZES = {"quick": (2_000, 8_000), "full": (4_385, 25_986, 100_000, 1_000_000)}
COMPARED = 100_000  # items up to which rivals are measured: one of them holds all scores

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(users: Tensor, candidates: Tensor, targets: Tensor) -> Tensor:
    """All scores at once."""
    return F.cross_entropy(users @ candidates.T, targets)


def pytorchs(users: Tensor, candidates: Tensor, targets: Tensor) -> Tensor:
    """PyTorch's own without all scores, of 2.12 and newer, with as many rows at once as it chooses."""
    loss: Tensor = F.linear_cross_entropy(users, candidates, targets, options=torch.nn.LinearCrossEntropyOptions())
    return loss


RIVALS = {"all scores at once": plain} | (
    {"linear_cross_entropy": pytorchs} if hasattr(F, "linear_cross_entropy") else {}
)


def rows(size: str, device: str) -> Iterator[Row]:
    """Loss and gradients of a batch at each catalogue."""
    rates = measure_rates(torch.device(device))
    for items in SIZES[size]:
        table = 4 * items * WIDTH
        work = Work(
            operations=6 * ROWS * items * WIDTH, bytes=3 * table
        )  # three products; the table twice, its gradient
        seconds, memory = apart(measure, full_cross_entropy, items, device)
        beyond = "memory: what the loss takes beyond users, table and their gradients"
        yield Row("loss and gradients", items, "items", seconds, "roofline", work.seconds(rates), memory, beyond)
        for name, rival in RIVALS.items() if items <= COMPARED else ():
            its_seconds, beside = apart(measure, rival, items, device)
            remark = f"its memory beyond: {beside:.0f} MiB"
            yield Row("loss and gradients", items, "items", seconds, name, its_seconds, memory, remark)


def measure(loss: Loss, items: int, device: str) -> tuple[float, float]:
    """Seconds of a loss with its gradients, and MiB that it takes beyond users, table and their gradients."""
    where = torch.device(device)
    users = torch.randn(ROWS, WIDTH, device=where, requires_grad=True)
    table = (torch.randn(items, WIDTH, device=where) / WIDTH**0.5).requires_grad_()
    targets = torch.randint(items, (ROWS,), device=where)

    def step() -> None:
        users.grad = table.grad = None
        loss(users, table, targets).backward()

    loss(users[:1, :1], table[:1, :1], targets[:1] * 0).backward()  # what it needs is loaded before counting
    users.grad = table.grad = None
    gradients = (users.numel() + table.numel()) * table.element_size()
    start_peak(device)
    before = peak_bytes(device)
    step()
    beyond = peak_bytes(device) - before - gradients
    return best(step, where), beyond / 2**20
