"""Rank the held-out item of every user among the whole catalogue, by counting."""

import torch
from torch import Tensor

from mmm4rec.models.base import System
from mmm4rec.training.data import Events

ROWS_AT_ONCE = 4096  # rows whose user vectors are computed at a time
#: scores held at a time: on a processor what its caches hold, on a GPU 128 MiB in float32
SCORES_AT_ONCE = {"cpu": 2**21, "cuda": 2**25}
FEWEST_USERS = 64  # scored at a time: with fewer, a matrix product is no faster than reading the items


@torch.inference_mode()
def rank_targets(
    system: System, events: Events, targets: Tensor, *, time: bool = False, mask_seen: bool = False
) -> Tensor:
    """Rank of each target: 1 + number of other candidates with a score at least the target's.

    Args:
        system: in any mode; it is ranked in evaluation mode.
        events: on the system's device.
        targets: [R] int64 event indices; each row's history is what the user did before.
        time: give the rows their times.
        mask_seen: items of the user's history are no candidates (the target always is).

    Returns:
        [R] int64 ranks in the order of ``targets``.

    Raises:
        FloatingPointError: a score is NaN.
    """
    was_training = system.training
    system.eval()
    tables = system.item_tables()
    extra = system.extra_candidates(tables)
    scored_at_once = max(FEWEST_USERS, SCORES_AT_ONCE[targets.device.type] // events.n_items)
    ranks = []
    for part in targets.split(ROWS_AT_ONCE):
        rows = events.batch(part, system.max_length, time=time, target_time=system.target_time_in_row)
        users = system.users(tables, rows)
        for some, those, items in zip(*(v.split(scored_at_once) for v in (users, part, rows.targets)), strict=True):
            scores = system.scores(tables, some)
            if bool(scores.amax(1).isnan().any()):
                raise FloatingPointError("a score is NaN: the model did not train to finite weights")
            target_scores = scores.gather(1, items[:, None] - 1)
            if mask_seen:
                scores = _without_history(scores, events, those, items)
            rank = _count(scores, target_scores)
            if extra is not None:
                rank += _count(some @ extra.T, target_scores)
            ranks.append(rank)
    system.train(was_training)
    return torch.cat(ranks)


def _count(scores: Tensor, least: Tensor) -> Tensor:
    """How many scores of each row [R, N] are at least the row's ``least`` [R, 1]; the scores are overwritten.

    The marks take the scores' place as numbers: as truth values they would take ten times as long to add.
    """
    assert scores.shape[1] < 2**24, "float32 counts no further"
    return scores.ge_(least).sum(1, dtype=torch.float32).long()


def _without_history(scores: Tensor, events: Events, targets: Tensor, target_items: Tensor) -> Tensor:
    """Scores with -inf for what the user had before the target, the target itself excepted."""
    first = events.first[targets]
    counts = targets - first
    row = torch.arange(len(targets), device=targets.device).repeat_interleave(counts)
    within = torch.arange(int(counts.sum()), device=targets.device) - (counts.cumsum(0) - counts)[row]
    seen = events.items[first[row] + within]
    other = seen != target_items[row]
    return scores.index_put((row[other], seen[other] - 1), scores.new_tensor(-torch.inf))
