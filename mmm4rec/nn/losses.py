"""Cross-entropy over the whole catalogue and over the targets of a batch (method, eq. 20-21)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmm4rec.nn.blockwise import aligned, blocks_of

Reduction = Literal["mean", "sum"]
Duplicates = Literal["masked", "kept", "zero_logit"]

SCORE_OF_DUPLICATES = {"masked": -torch.inf, "zero_logit": 0.0}

#: scores held at a time: 128 MiB in float32, and on a processor no more rows of them than its caches like
SCORES_AT_ONCE = 2**25
ROWS_AT_ONCE = {"cpu": 128}
IN_BATCH_AT_ONCE = {"cpu": 2**20}  # of the scores over a batch's targets
OWN_WAY_ON = {"cpu"}  # where PyTorch's linear_cross_entropy, whose scores are not aligned, was measured to be slower


def full_cross_entropy(users: Tensor, candidates: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy of the target among all candidates, -log softmax(users @ candidates.T)[target].

    Scores are computed a few rows at a time and never kept: memory does not grow with B * N, and on a CPU the rows stay
    in its caches. They are float32 at least, in mixed precision too. It can be differentiated once, by one
    ``backward``: its gradients are made on the way forward.

    Args:
        users: [B, D].
        candidates: [N, D].
        targets: [B] int64 rows of ``candidates``, none left out.
        reduction: over the B rows.
    """
    if not len(users):
        return F.cross_entropy(_logits(users, candidates), targets, reduction=reduction)
    fine = torch.promote_types(torch.promote_types(users.dtype, candidates.dtype), torch.float32)
    with torch.autocast(users.device.type, enabled=False):
        return _by_rows(users.to(fine), candidates.to(fine), targets, reduction)


def _by_rows(users: Tensor, candidates: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
    at_once = max(1, SCORES_AT_ONCE // len(candidates))
    at_once = min(at_once, ROWS_AT_ONCE.get(users.device.type, at_once))
    if hasattr(F, "linear_cross_entropy") and users.device.type not in OWN_WAY_ON:  # torch 2.12 and newer
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=at_once)
        loss: Tensor = F.linear_cross_entropy(users, candidates, targets, reduction=reduction, options=options)
        return loss
    loss = _RowsAtATime.apply(users, candidates, targets, at_once, torch.is_grad_enabled(), None, "kept")
    return loss / len(users) if reduction == "mean" else loss


class _RowsAtATime(torch.autograd.Function):
    """Sum of cross-entropies, some rows at a time.

    Gradients are made on the way forward: scores need not be computed again, nor gradients be held twice. With e the
    exponentials of a row's scores s less the largest, m, and z their sum, the loss is m + log z - s_t, and the gradient
    of the scores is (e - z [j = t]) / z: rows of the products are divided by z, not the scores.
    ``learns`` tells whether gradients are wanted at all; ``items`` [N], of the candidates, tell duplicates.
    """

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        candidates: Tensor,
        targets: Tensor,
        at_once: int,
        learns: bool,
        items: Tensor | None,
        duplicates: Duplicates,
    ) -> Tensor:
        loss, n = users.new_zeros(()), len(candidates)
        wanted = [learns and needed for needed in ctx.needs_input_grad[:2]]
        grad_users, grad_candidates = (
            torch.zeros_like(x) if want else None for x, want in zip((users, candidates), wanted, strict=True)
        )
        held = users.new_empty(min(at_once, len(users)), aligned(n))[:, :n]  # the scores of some rows, then of others
        for start in range(0, len(users), at_once):
            u, t = users[start : start + at_once], targets[start : start + at_once, None]
            scores = torch.mm(u, candidates.T, out=held[: len(u)])
            same = None if items is None or duplicates == "kept" else _duplicates(items, t[:, 0])
            if same is not None:
                scores.masked_fill_(same, SCORE_OF_DUPLICATES[duplicates])
            own = scores.gather(1, t)
            largest, total = torch.empty_like(own), torch.empty_like(own)
            for some, m, z in blocks_of(scores, largest, total):
                torch.amax(some, 1, keepdim=True, out=m)
                torch.sum(some.sub_(m).exp_(), 1, keepdim=True, out=z)
            loss += (largest - own + total.log()).sum()
            if any(wanted):
                if same is not None:
                    scores.masked_fill_(same, 0)  # a score of 0 is nobody's
                scores.scatter_add_(1, t, -total)
            if grad_users is not None:
                grad_users[start : start + at_once] = (scores @ candidates).div_(total)
            if grad_candidates is not None:  # torch's counter of operations knows no addmm_
                torch.addmm(grad_candidates, scores.T, u / total, out=grad_candidates)
        ctx.save_for_backward(grad_users, grad_candidates)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_both = (v if v is None else v.mul_(grad) for v in ctx.saved_tensors)  # in place: they serve once
        return *of_both, None, None, None, None, None


def in_batch_cross_entropy(
    users: Tensor,
    candidates: Tensor,
    targets: Tensor,
    duplicates: Duplicates = "masked",
    places: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of each row's target among the targets of its batch.

    As ``full_cross_entropy``: some rows at a time, in float32 at least, and differentiated once.

    Args:
        users: [R, D], of some rows of the batch or of all.
        candidates: [B, D], row b the vector of the batch's b-th target.
        targets: [B] item ids, to tell duplicates.
        duplicates: see ``without_duplicates``.
        places: [R] int64, where in the batch each user's row stands; None: they are all of its rows.
        reduction: over the users.
    """
    if places is None:
        places = torch.arange(len(targets), device=targets.device)
    most = IN_BATCH_AT_ONCE.get(users.device.type, SCORES_AT_ONCE)
    at_once = max(1, most // max(1, len(candidates)))
    fine = torch.promote_types(torch.promote_types(users.dtype, candidates.dtype), torch.float32)
    with torch.autocast(users.device.type, enabled=False):
        vectors = users.to(fine), candidates.to(fine)
        loss: Tensor = _RowsAtATime.apply(*vectors, places, at_once, torch.is_grad_enabled(), targets, duplicates)
    return loss / len(users) if reduction == "mean" else loss


def without_duplicates(logits: Tensor, targets: Tensor, duplicates: Duplicates) -> Tensor:
    """Logits [B, B] of a batch's targets [B] for each of its rows, less other occurrences of a row's own target.

    ``masked`` takes them out of the denominator; ``kept`` leaves them in as negatives, as released MMM4Rec does;
    ``zero_logit`` counts each as a negative of score 0, as UniSRec and VQRec do.
    """
    if duplicates == "kept":
        return logits
    same = _duplicates(targets, torch.arange(len(targets), device=targets.device))
    return logits.masked_fill(same, SCORE_OF_DUPLICATES[duplicates])


def _duplicates(targets: Tensor, places: Tensor) -> Tensor:
    """Where targets [B] of a batch are those of its rows ``places`` [R] once more: [R, B]."""
    return (targets[places, None] == targets).scatter(1, places[:, None], False)


def _logits(users: Tensor, candidates: Tensor) -> Tensor:
    logits = users @ candidates.T
    return logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision is too coarse for a softmax
