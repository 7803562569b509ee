"""Random items that a row does not hold; for all rows of a batch at once."""

import torch
from torch import Tensor


def unseen(items: Tensor, n_items: int) -> Tensor:
    """An item for each position, uniform among those of 1..n_items that the row does not hold.

    Args:
        items: [B, L] int64, 0 pads.
        n_items: N; a row that holds all N items gets N.

    Returns:
        [B, L] int64.
    """
    ordered = items.sort(dim=1).values
    first = ordered > 0
    first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    length = items.shape[1]
    distinct = ordered.masked_fill(~first, n_items + length + 1).sort(dim=1).values
    # how many unseen items are smaller than the row's i-th distinct one
    below = distinct - torch.arange(1, length + 1, device=items.device)
    count = n_items - first.sum(1, keepdim=True)
    rank = (torch.rand(items.shape, device=items.device) * count).long()
    return (rank + 1 + torch.searchsorted(below, rank, right=True)).clamp(max=n_items)
