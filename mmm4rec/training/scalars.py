"""Learning curves for TensorBoard."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scalars(folder: Path | None) -> Iterator[Callable[[int, dict[str, float]], None] | None]:
    """A function (epoch, row) that writes a row's numbers to TensorBoard; None without a folder."""
    if folder is None:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    writer: SummaryWriter | None = None

    def write(epoch: int, row: dict[str, float]) -> None:
        nonlocal writer
        # what an earlier training left of this epoch and the later ones is hidden
        writer = writer or SummaryWriter(str(folder), purge_step=epoch)
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, epoch)

    try:
        yield write
    finally:
        if writer:
            writer.close()
