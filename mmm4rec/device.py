"""Where a command computes: on the CPU, or on a GPU, of several on one that no other command of this user has."""

import fcntl
import logging
import os
import tempfile
from pathlib import Path
from typing import IO

import torch

from mmm4rec.errors import UserError

log = logging.getLogger(__name__)

_leased: dict[int, IO[str]] = {}  # the GPU that this process has, and the lock on it, which ends with the process


def resolve_device(device: str) -> torch.device:
    """``auto`` is a GPU where there is one.

    Where there are several, it is the first one that no other command has, and the current one from here on: jobs that
    run side by side take different ones, and so do the processes that ``torchrun`` starts.

    Raises:
        UserError: it is none of ``auto``, ``cpu`` and ``cuda``, or ``cuda`` is asked for and not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"device: {device} is none of auto, cpu and cuda; one of several GPUs is chosen by CUDA_VISIBLE_DEVICES"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but torch sees no GPU; set `device: auto` or `device: cpu`")
    index = _lease()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _lease() -> int:
    """The index of a GPU that no other process has leased, or of one to be shared if all are taken."""
    gpus = torch.cuda.device_count()
    if gpus == 1 or _leased:
        return next(iter(_leased), 0)
    for index in range(gpus):
        # whatever CUDA_VISIBLE_DEVICES makes of the indices, a GPU has one name
        name = getattr(torch.cuda.get_device_properties(index), "uuid", index)
        file = (Path(tempfile.gettempdir()) / f"mmm4rec-{os.getuid()}-gpu-{name}.lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        _leased[index] = file
        return index
    index = int(os.environ.get("LOCAL_RANK", os.getpid())) % gpus
    log.warning(
        "all %d GPUs are taken, so GPU %d is shared: start no more jobs, --resources gpu=%d",
        gpus,
        index,
        gpus,
    )
    return index
