"""The roofline (Williams, Waterman and Patterson, CACM 2009).

No computation is quicker than its operations at the rate of matrix products, nor than its bytes at the rate of memory.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

PRODUCT = 2048  # rows and columns of the matrices whose product is timed
COPIED = 2**28  # bytes, far more than any cache
REPEATS = 5


@dataclass(frozen=True)
class Rates:
    """What the device reaches at best.

    Attributes:
        operations: floating-point operations a second in products of matrices, at the precision that training uses.
        bytes: bytes a second, read and written, in a copy.
    """

    operations: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """What a computation cannot do without.

    Attributes:
        operations: floating-point operations of its matrix products, convolutions and attention.
        bytes: bytes that must be read or written at least once.
    """

    operations: float
    bytes: float

    def seconds(self, rates: Rates) -> float:
        """The least time that it takes."""
        return max(self.operations / rates.operations, self.bytes / rates.bytes)


def measure_rates(device: torch.device) -> Rates:
    """Measure both rates, the best of a few tries each."""
    a, b = (torch.randn(PRODUCT, PRODUCT, device=device) for _ in range(2))
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)
    operations = 2 * PRODUCT**3 / best(lambda: a @ b, device)
    return Rates(operations, 2 * COPIED / best(lambda: goal.copy_(source), device))


def best(run: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Seconds of the quickest of several calls, after one to warm up: the one that other work disturbed least."""
    run()
    return min(timed(run, device) for _ in range(repeats))


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    _finish(device)
    start = time.perf_counter()
    run()
    _finish(device)
    return time.perf_counter() - start


def count_operations(run: Callable[[], object]) -> float:
    """Operations that a call's matrix products, convolutions and attention take."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
