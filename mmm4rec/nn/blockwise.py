"""What a CPU's memory asks for: passes over a block at a time, and rows that begin where a vector register does.

Each pass over a block finds in the caches what the one before it left there.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CACHED = 2**18  # numbers that a cache of a processor holds
REGISTER = 16  # numbers that a vector register holds, of float32


def plain_cpu(x: Tensor) -> bool:
    """Whether x is computed with on a CPU and in its own precision."""
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def blocks_of(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of tensors of equal length, some at a time: on a CPU as many as its cache holds of the first one."""
    first = tensors[0]
    rows = len(first) if first.device.type != "cpu" else CACHED * len(first) // max(1, first.numel())
    return zip(*(v.split(max(1, rows)) for v in tensors), strict=True)


def aligned(width: int) -> int:
    """The next multiple of a vector register: a product with rows of another width takes up to half as long again."""
    return -(-width // REGISTER) * REGISTER
