"""Cross-entropy over the whole catalogue and over the targets of a batch (method, eq. 20-21)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def full_cross_entropy(
    users: Tensor, candidates: Tensor, targets: Tensor, reduction: Literal["mean", "sum", "none"] = "mean"
) -> Tensor:
    """Cross-entropy of the target among all candidates, -log softmax(users @ candidates.T)[target].

    Args:
        users: [B, D].
        candidates: [N, D].
        targets: [B] int64 rows of ``candidates``.
        reduction: over the B rows.
    """
    return F.cross_entropy(_logits(users, candidates), targets, reduction=reduction)


Duplicates = Literal["masked", "kept", "zero_logit"]


def in_batch_cross_entropy(
    users: Tensor, candidates: Tensor, targets: Tensor, duplicates: Duplicates = "masked"
) -> Tensor:
    """Cross-entropy of each row's target among the targets of the batch; the mean over rows.

    Args:
        users: [B, D].
        candidates: [B, D], row b the vector of row b's target.
        targets: [B] item ids, to tell duplicates.
        duplicates: see ``without_duplicates``.
    """
    logits = without_duplicates(_logits(users, candidates), targets, duplicates)
    return F.cross_entropy(logits, torch.arange(len(targets), device=targets.device))


def without_duplicates(logits: Tensor, targets: Tensor, duplicates: Duplicates) -> Tensor:
    """Logits [B, B] of a batch's targets [B] for each of its rows, less other occurrences of a row's own target.

    ``masked`` takes them out of the denominator; ``kept`` leaves them in as negatives, as released MMM4Rec does;
    ``zero_logit`` counts each as a negative of score 0, as UniSRec and VQRec do.
    """
    if duplicates == "kept":
        return logits
    same = targets[:, None] == targets[None, :]
    same.fill_diagonal_(False)
    return logits.masked_fill(same, 0 if duplicates == "zero_logit" else -torch.inf)


def _logits(users: Tensor, candidates: Tensor) -> Tensor:
    logits = users @ candidates.T
    return logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision is too coarse for a softmax
