"""Pre-training on several devices: one process a device, started by ``torchrun``.

Every process (rank) has all events and draws the same batches, noise and augmented rows; divided is what costs most, to
encode the batch's rows. User vectors are gathered, and every rank computes the one loss of the whole batch, with the
negatives of all ranks. Repeated on each of the W ranks are a step's item tables, their gradient, the loss and the
optimiser's step.

The mean of the ranks' gradients is the gradient of one device: as each rank computes the whole loss, what goes back
through the gathered vectors is summed W-fold and reaches a rank's own share alone, so that the mean over the ranks
counts every share once. All other paths are alike on all ranks, and a mean leaves them as they are.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from mmm4rec.config import read_system
from mmm4rec.errors import UserError
from mmm4rec.models.base import Rows, System, Tables

#: seeds are drawn below this, which leaves room for the ranks
SEEDS = 2**62


def launched() -> int:
    """How many processes ``torchrun`` started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def ranks() -> int:
    """How many processes train together, W."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and tells of progress: rank 0, or the only one."""
    return ranks() == 1 or dist.get_rank() == 0


def require_one(what: str) -> None:
    """Refuse to do in several processes what only one can do.

    Args:
        what: the command, e.g. ``mmm4rec finetune``.

    Raises:
        UserError: ``torchrun`` started more than one.
    """
    if launched() > 1:
        raise UserError(f"{what} runs on one device: start it without torchrun, which is for `mmm4rec pretrain` alone")


@contextmanager
def process_group(device: torch.device, system: str) -> Iterator[torch.device]:
    """Connect the processes that ``torchrun`` started, by NCCL on GPUs and by gloo on CPUs; without it do nothing.

    Args:
        device: this process's own, see `mmm4rec.device`.
        system: key of the system to be trained.

    Yields:
        The device of this process.

    Raises:
        UserError: the system trains on one device alone, or there are more processes than GPUs.
    """
    if launched() == 1:
        yield device
        return
    if read_system(system).one_device:
        raise UserError(
            f"{system} pre-trains on one device alone, since its loss takes more than a vector a row: "
            "start it without torchrun"
        )
    backend = "gloo"
    if device.type == "cuda":
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > gpus:
            raise UserError(f"torchrun starts {here} processes for {gpus} GPUs: lower --nproc-per-node to {gpus}")
        backend = "nccl"
    dist.init_process_group(backend, device_id=device if backend == "nccl" else None)
    yield device
    # Only after success: a rank that failed alone must not wait for the others, which torchrun ends once it exits.
    dist.barrier()  # others end when rank 0 has written its files
    dist.destroy_process_group()


def require_same_epoch(epoch: int) -> None:
    """Wait until every rank has read the state of an unfinished training, and make sure that it was the same.

    Args:
        epoch: the one that this rank goes on after.

    Raises:
        UserError: another rank goes on after another one.
    """
    if ranks() == 1:
        return
    epochs: list[int] = [0] * ranks()
    dist.all_gather_object(epochs, epoch)
    if len(set(epochs)) > 1:
        raise UserError(
            f"the processes would go on after different epochs {epochs}: `--state` has to be a folder that all of them "
            "see, and their devices of one kind; else start anew with an empty one"
        )


def divide_rows(system: System, seed: int) -> None:
    """Let every rank encode its own share of the rows from now on; to be called at the start of an epoch.

    The ranks' weights are made those of rank 0. Dropout within a share is drawn from a stream of its own for each rank,
    and the global generators are left as if nothing had been drawn: what all ranks compute draws alike on all of them
    and, without dropout in the encoder, as on one device.

    Args:
        system: whose ``encode_rows`` is replaced on this instance.
        seed: of the ranks' streams.
    """
    if ranks() == 1:
        return
    for tensor in system.state_dict().values():
        dist.broadcast(tensor, 0)
    streams = torch.Generator().manual_seed(seed)  # alike on all ranks, as every rank encodes equally often

    def encode_rows(tables: Tables, rows: Rows) -> Tensor:
        n, world, rank = len(rows.lengths), ranks(), dist.get_rank()
        if n < world:  # no row for some: all encode all, alike
            return type(system).encode_rows(system, tables, rows)
        sizes = [len(share) for share in torch.arange(n).tensor_split(world)]
        start = sum(sizes[:rank])
        device = rows.lengths.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(SEEDS, (), generator=streams)) + rank)
            own = type(system).encode_rows(system, tables, rows.select(slice(start, start + sizes[rank])))
        gathered: Tensor = _AllGather.apply(own, sizes)
        return gathered

    system.encode_rows = encode_rows  # type: ignore[method-assign]


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Make every gradient the mean over the ranks; it is there on all of them or on none."""
    if ranks() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = parameters_to_vector(gradients)
    dist.all_reduce(flat)
    vector_to_parameters(flat / ranks(), gradients)


class _AllGather(torch.autograd.Function):
    """Rows of all ranks [B, ...] from each rank's own; backward, the sum of the ranks' gradients of the own rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = own.new_zeros(max(sizes), *own.shape[1:])  # collectives need equal shapes
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.split(ctx.sizes)[dist.get_rank()], None
