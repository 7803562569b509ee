"""What modules of Triton kernels share: whether they are there, run on a device and start.

Importing this file needs no Triton.
"""

import functools
import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

CAPABILITY = (8, 0)  # of the GPU: it has TF32 and bfloat16
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def load(name: str) -> ModuleType | None:
    """The kernels `mmm4rec.nn.<name>`, imported when first needed: all else works without Triton."""
    try:
        return importlib.import_module(f"mmm4rec.nn.{name}")
    except ImportError:
        return None


@functools.cache
def interpreted() -> bool:
    """Whether kernels run on the CPU, for tests: with TRITON_INTERPRET=1 before Triton is imported."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def runs_on(device: torch.device) -> bool:
    """Whether kernels run there: on NVIDIA GPUs with TF32; on the CPU if they are interpreted."""
    if interpreted():
        return device.type == "cpu"
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device) >= CAPABILITY
    )


def kernels(name: str, device: torch.device) -> ModuleType | None:
    """The kernels `mmm4rec.nn.<name>` if the device is a GPU that runs them."""
    module = load(name) if device.type == "cuda" else None
    return module if module is not None and runs_on(device) else None


def starts(what: str, sizes: tuple[Any, ...], attempt: Callable[[], object]) -> bool:
    """Whether the kernels of ``what`` compile and start: tried once for such sizes, with a warning if not.

    What is missing then is mostly a C compiler, which Triton needs, or shared memory.
    """
    key = what, *sizes
    if key not in _started:
        try:
            attempt()
            _started[key] = True
        except Exception as error:  # whatever a compiler, a driver or its absence may raise
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"{what} goes without its fused kernels, which do not start here: {reason}", stacklevel=4)
            _started[key] = False
    return _started[key]


_started: dict[tuple[Any, ...], bool] = {}
