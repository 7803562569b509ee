"""The roofline (Williams, Waterman and Patterson, CACM 2009).

No computation is quicker than its operations at the rate of matrix products, nor than its bytes at the rate of memory.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

PRODUCT = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices whose product is timed
COPIED = {"cpu": 2**28, "cuda": 2**31}  # bytes, far more than any cache
CALLS = {"cpu": 1, "cuda": 10}  # timed together: a GPU is waited for once
REPEATS = 5
MATRIX_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"}  # names of PyTorch's operations


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
    size, calls = PRODUCT[device.type], CALLS[device.type]
    a, b, c = (torch.randn(size, size, device=device) for _ in range(3))
    source = torch.zeros(COPIED[device.type], dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)

    def multiply() -> None:
        for _ in range(calls):
            torch.mm(a, b, out=c)

    def copy() -> None:
        for _ in range(calls):
            goal.copy_(source)

    operations, moved = calls * 2 * size**3, calls * 2 * len(source)
    return Rates(operations / best(multiply, device), moved / best(copy, device))


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


def profile(run: Callable[[], object], device: torch.device, most: int = 5) -> str:
    """Where the time of a call goes: the operations that take most of it by themselves, as ``products 61 %, mul 5 %``.

    On a GPU the time is that of the kernels which an operation starts.
    """
    kinds = {"cpu": [ProfilerActivity.CPU], "cuda": [ProfilerActivity.CPU, ProfilerActivity.CUDA]}[device.type]
    with torch.profiler.profile(activities=kinds) as seen:
        run()
        _finish(device)
    taken: Counter[str] = Counter()
    for event in seen.key_averages():
        if event.device_type == DeviceType.CPU:  # kernels are listed once more by themselves
            name = event.key.removeprefix("aten::")
            name = "products" if name in MATRIX_PRODUCTS else name
            taken[name] += event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total
    whole = taken.total()
    if not whole:  # a GPU whose counters may not be read
        return ""
    return ", ".join(f"{name} {100 * time / whole:.0f} %" for name, time in taken.most_common(most))


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
