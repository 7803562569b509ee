"""Other views of the same rows, for contrastive losses."""

import torch
from torch import Tensor


def happens(share: float) -> bool:
    """Draw once what holds for a whole batch, with the probability ``share``.

    On the host, so that nobody waits for a device; its generator is alike in all processes that train together.
    """
    return bool(torch.rand(()) < share)


def drop_items(items: Tensor, lengths: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Delete events at random and close the gaps; a row's first event always stays.

    Args:
        items: [B, L] right-padded with 0.
        lengths: [B] int64, at least 1.
        share: probability that an event is deleted.

    Returns:
        The shorter rows [B, L], right-padded with 0, and their lengths [B].
    """
    B, L = items.shape
    position = torch.arange(L, device=items.device)
    kept = (torch.rand(B, L, device=items.device) >= share) | (position == 0)
    kept &= position < lengths[:, None]
    slot = torch.where(kept, kept.cumsum(1) - 1, L)  # what is deleted goes to a column of its own
    compact = items.new_zeros(B, L + 1).scatter_(1, slot, items)
    return compact[:, :L], kept.sum(1)


def exchange_items(items: Tensor, share: float, shift: int) -> Tensor:
    """Exchange events at random for another form of the same item, which stands ``shift`` rows below it in the tables.

    Args:
        items: [B, L] right-padded with 0.
        share: probability that an event is exchanged.
        shift: rows of the tables that the first forms take.

    Returns:
        The rows [B, L]; padding stays 0.
    """
    chosen = (torch.rand(items.shape, device=items.device) < share) & (items > 0)
    return torch.where(chosen, items + shift, items)
