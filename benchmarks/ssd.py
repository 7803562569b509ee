"""State space duality: every form of it, forward and backward, over lengths."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.roofline import Work, best, measure_rates
from benchmarks.table import Row, apart, peak_bytes, start_peak
from mmm4rec.nn.ssd import CHUNK, ssd, ssd_chunked, ssd_quadratic, ssd_reference
from mmm4rec.nn.triton_support import kernels

HEADS, HEAD_SIZE, STATES = 8, 64, 64
POSITIONS = {"cpu": 2_000, "cuda": 20_000}  # of a batch, whatever the length of its rows
SIZES = {"quick": (4, 20), "full": (4, 20, 50, 200, 1000)}

Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def fused(x: Tensor, dt: Tensor, a: Tensor, B: Tensor, C: Tensor, skip: Tensor) -> Tensor:
    """The kernels, or an error."""
    return ssd(x, dt, a, B, C, skip, method="fused")


def rows(size: str, device: str) -> Iterator[Row]:
    """Values and gradients of as many positions at each length."""
    rates = measure_rates(torch.device(device))
    for length in SIZES[size]:
        n_rows = POSITIONS[device] // length
        limit = least(n_rows, length).seconds(rates)
        taken = {}
        forms: dict[str, Form] = {"quadratic": ssd_quadratic, "reference loop": ssd_reference}
        if length > CHUNK:  # shorter rows are one chunk, most of it padding
            forms["chunked"] = ssd_chunked
        if _has_kernels(length, device):
            forms["fused"] = fused
        for name, form in forms.items():
            seconds, memory = apart(measure, form, n_rows, length, device)
            taken[name] = seconds
            remark = f"{n_rows} rows; memory: what it takes beyond inputs and their gradients"
            yield Row(name, length, "positions", seconds, "roofline", limit, memory, remark)
        if "fused" in taken:
            yield Row("fused", length, "positions", taken["fused"], "quadratic", taken["quadratic"], memory, remark)


def _has_kernels(length: int, device: str) -> bool:
    """Whether rows of that length have kernels, and the device room for them."""
    if (found := kernels("ssd_triton", torch.device(device))) is None:
        return False
    x, dt, a, B, C, skip = invent(1, length, torch.device(device))
    return bool(found.fits(x, dt, B, C) and found.starts(x, dt, a, B, C, skip))


def least(n_rows: int, length: int) -> Work:
    """What no form does without.

    Two products forward and four backward: of each position with itself and those before it, or with the state, if that
    is less. Forward reads x, dt, B and C and writes the result; backward reads them and its gradient and writes theirs.
    """
    pairs, states = (length + 1) * (HEAD_SIZE + STATES), 4 * HEAD_SIZE * STATES  # operations a position and head
    numbers = 5 * HEAD_SIZE + 6 * STATES + 3
    positions = n_rows * length * HEADS
    return Work(operations=3 * positions * min(pairs, states), bytes=4 * positions * numbers)


def measure(form: Form, n_rows: int, length: int, device: str) -> tuple[float, float]:
    """Seconds of a form with its gradients, and MiB that it takes beyond inputs and their gradients."""
    where = torch.device(device)
    inputs, weight = invent(n_rows, length, where), torch.randn(n_rows, length, HEADS, HEAD_SIZE, device=where)

    def step() -> None:
        torch.autograd.grad(form(*inputs), inputs, weight)

    form(*invent(1, 1, where)).sum().backward()  # libraries are loaded before counting
    gradients = sum(v.numel() * v.element_size() for v in inputs)
    start_peak(device)
    before = peak_bytes(device)
    step()
    beyond = peak_bytes(device) - before - gradients
    return best(step, where), beyond / 2**20


def invent(n_rows: int, length: int, where: torch.device) -> list[Tensor]:
    """x, dt, a, B, C and skip."""
    inputs = [
        torch.randn(n_rows, length, HEADS, HEAD_SIZE, device=where),
        torch.rand(n_rows, length, HEADS, device=where) / 10,
        -torch.linspace(1, 16, HEADS, device=where),
        *(torch.randn(n_rows, length, HEADS, STATES, device=where) for _ in range(2)),
        torch.ones(HEADS, device=where),
    ]
    return [v.requires_grad_() for v in inputs]
