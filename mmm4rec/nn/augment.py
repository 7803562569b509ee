"""Other views of the same rows, for contrastive losses."""

import torch
from torch import Tensor


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
