"""Rank the held-out item of every user among the whole catalogue, by counting."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmm4rec.models.base import System, Tables
from mmm4rec.nn.blockwise import aligned
from mmm4rec.training.data import Events, send

ROWS_AT_ONCE = 16384  # rows whose user vectors are computed at a time
#: users and items whose scores are held at a time: on a processor what its caches hold, on a GPU 128 MiB in float32;
#: items are multiples of a vector register, see `mmm4rec.nn.blockwise.aligned`
USERS_AT_ONCE = {"cpu": 512, "cuda": 4096}
ITEMS_AT_ONCE = {"cpu": 1024, "cuda": 8192}
FEWEST_USERS = 32  # with fewer, a product of matrices may round the same two vectors otherwise in another column


@torch.inference_mode()
def rank_targets(
    system: System, events: Events, targets: Tensor, *, time: bool = False, mask_seen: bool = False
) -> Tensor:
    """Rank of each target: 1 + number of other candidates with a score at least the target's.

    Args:
        system: in any mode; it is ranked in evaluation mode.
        events: on the system's device.
        targets: [R] int64 event indices, in the host's memory; each row's history is what the user did before.
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
    # in the order of their items: a block of users then has its targets in few blocks of items
    order = events.host.items[targets].argsort()
    ranks = []
    for some in _blocks(targets[order], ROWS_AT_ONCE):
        rows = events.batch(some, system.max_length, time=time, target_time=system.target_time_in_row)
        users = system.users(tables, rows)
        blocks = (_blocks(v, USERS_AT_ONCE[users.device.type]) for v in (some, users, rows.targets))
        for few, vectors, items in zip(*blocks, strict=True):
            had = _other(seen(events, send(few, users.device)), items) if mask_seen else None
            ranks.append(_ranks(system, tables, extra, vectors, items, had))
    system.train(was_training)
    ranked = torch.cat(ranks)
    return torch.empty_like(ranked).index_copy_(0, order.to(ranked.device), ranked)


def _blocks(values: Tensor, most: int) -> tuple[Tensor, ...]:
    """As few as hold ``most`` rows each, all of nearly the same size."""
    return values.tensor_split(max(1, -(-len(values) // most)))


def _ranks(
    system: System,
    tables: Tables,
    extra: Tensor | None,
    users: Tensor,
    items: Tensor,
    had: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Ranks [R] of the ``items`` [R] for the ``users`` [R, D], a block of candidates at a time.

    Args:
        system: in evaluation mode.
        tables: of the whole catalogue.
        extra: candidates beside the catalogue.
        users: their vectors.
        items: the targets.
        had: rows and items of the pairs that do not compete.

    Raises:
        FloatingPointError: a score is NaN.
    """
    n_items, at_once = len(tables[0]) - 1, ITEMS_AT_ONCE[users.device.type]
    width = min(n_items, aligned(-(-n_items // -(-n_items // at_once))))
    enough = F.pad(users, (0, 0, 0, max(0, FEWEST_USERS - len(users))))

    def scores(first: int) -> Tensor:
        """Of ``width`` items or what is left of them, from the first on."""
        start = min(first, n_items - width + 1)  # all products have the same shape, so that they round alike
        some = tuple(table[start - 1 : start + width] for table in tables)  # the first counts as padding
        return system.scores(some, enough)[: len(users), first - start :]

    least = users.new_empty(len(users), 1)
    rank = torch.zeros_like(items)
    blocks = range(1, n_items + 1, width)
    latest = (0, least)  # a block that is there already; to keep all that hold targets could be to keep all
    for first in blocks:
        row = ((items >= first) & (items < first + width)).nonzero()[:, 0]
        if len(row):
            latest = (first, scores(first))
            least[row, 0] = latest[1][row, items[row] - first]
    failed = least.isnan().any()
    for first in blocks:
        block = latest[1] if first == latest[0] else scores(first)
        failed |= block.amax().isnan()
        if had is not None:
            row, item = (v[(had[1] >= first) & (had[1] < first + width)] for v in had)
            block[row, item - first] = -torch.inf
        rank += _count(block, least)
    if extra is not None:
        rank += _count(users @ extra.T, least)
    if failed:
        raise FloatingPointError("a score is NaN: the model did not train to finite weights")
    return rank


def _count(scores: Tensor, least: Tensor) -> Tensor:
    """How many scores of each row [R, N] are at least the row's ``least`` [R, 1]; the scores are overwritten.

    The marks take the scores' place as numbers: as truth values they would take ten times as long to add.
    """
    assert scores.shape[1] < 2**24, "float32 counts no further"
    return scores.ge_(least).sum(1, dtype=torch.float32).long()


def seen(events: Events, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and items of all that the users had before the targets [R]."""
    first = events.first[targets]
    counts = targets - first
    row = torch.arange(len(targets), device=targets.device).repeat_interleave(counts)
    within = torch.arange(len(row), device=targets.device) - (counts.cumsum(0) - counts)[row]
    return row, events.items[first[row] + within]


def _other(had: tuple[Tensor, Tensor], target_items: Tensor) -> tuple[Tensor, Tensor]:
    """Those rows and items that are not the row's target, which always competes."""
    other = had[1] != target_items[had[0]]
    return had[0][other], had[1][other]
