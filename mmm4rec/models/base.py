"""The interface every system meets, and the registry that finds one by its key.

Shapes: B rows, L positions, N items of the catalogue, M items at hand, D width of the user vectors, F encoder width.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmm4rec.errors import UserError
from mmm4rec.nn.losses import full_cross_entropy, in_batch_cross_entropy
from mmm4rec.reading import validated


class Settings(BaseModel):
    """Hyper-parameters of a system; a subclass a system. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_length: int = Field(50, ge=1)


@dataclass(frozen=True)
class Catalogue:
    """What a system may know of a domain before it is trained. Tensors lie where the system is built, on the host.

    Attributes:
        n_items: N; ids run 1..N, 0 pads.
        text: [N + 1, F_text] frozen features as stored, or None; rows of items without text, and row 0, are zero.
        image: [N + 1, F_image], likewise.
        has_text: [N + 1] bool; False in row 0.
        has_image: [N + 1] bool, likewise.
        has_time: whether any event of the domain has a timestamp.
        all_timed: whether every event has one.
        popularity: [N + 1] training events an item.
        attributes: [N + 1, C] int64, the numbers of each item's brand and categories, 1..A, each once, 0 pads; None if
            the system does not read them or no item has any.
        missing_image: policy for items without an image: ``zero``, ``mask`` or ``white`` (features are filled already).
        text_dropped: [N + 1, F_text] features of texts with words left out, those of the whole text for items without;
            None where no domain has any, and for all but the pre-training of systems that ask for them.
    """

    n_items: int
    text: Tensor | None = None
    image: Tensor | None = None
    has_text: Tensor | None = None
    has_image: Tensor | None = None
    has_time: bool = False
    all_timed: bool = False
    popularity: Tensor | None = None
    attributes: Tensor | None = None
    missing_image: str = "zero"
    text_dropped: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """A batch: one row a (user, end of prefix). Right-padded, trimmed to the longest row.

    Attributes:
        items: [B, L] int64 rows of the item tables, 0 pads; the oldest kept event first.
        lengths: [B] int64, at least 1.
        targets: [B] int64 rows of the item tables.
        times: [B, max_length] int64 unix seconds, 0 where padded or unknown; not trimmed, since a model may be asked
            to count padded positions as events. None if the system does not read time or the domain has none.
        has_time: [B] bool, whether every event of the row has a timestamp; None with ``times``.
        host_lengths: [B] the lengths once more, in the host's memory, where nobody waits for the device to read them;
            None if they are made on the device.
    """

    items: Tensor
    lengths: Tensor
    targets: Tensor
    times: Tensor | None = None
    has_time: Tensor | None = None
    host_lengths: Tensor | None = None

    def select(self, index: slice | Tensor, length: int | None = None) -> "Rows":
        """Some of the rows, their items trimmed to ``length`` positions."""
        host_lengths = self.host_lengths if isinstance(index, slice) else None
        return Rows(
            items=self.items[index] if length is None else self.items[index][:, :length],
            lengths=self.lengths[index],
            targets=self.targets[index],
            times=None if self.times is None else self.times[index],
            has_time=None if self.has_time is None else self.has_time[index],
            host_lengths=None if host_lengths is None else host_lengths[index],
        )


@dataclass(frozen=True)
class Batches:
    """Which batches, of equal size, the rows of a call are from: some of each one's, batch by batch.

    Attributes:
        size: rows of a whole batch.
        counts: of each of the K batches, how many of its rows are there.
        places: [R] int64 where in its batch each row stands.
        targets: [K * size] int64 rows of the item tables: the targets of the whole batches.
    """

    size: int
    counts: list[int]
    places: Tensor
    targets: Tensor


Tables = tuple[Tensor, ...]


class System(nn.Module):
    """A sequential recommender: an item encoder and a sequence encoder whose product scores.

    A subclass sets ``Settings`` and implements ``item_tables``, ``encode`` and, unless the first table holds the
    candidate vectors, ``candidates``.
    """

    Settings: ClassVar[type[Settings]] = Settings
    #: it uses times here: the domain has some, and the settings do not leave them out
    timed: bool = False
    #: the time of the target is put into the row (a leak: MMM4Rec's preset `released` asks for it, TiM4Rec's defect)
    target_time_in_row: bool = False
    #: the sequence encoder needs rows of max_length positions (spectra over the padded length, say)
    fixed_length: bool = False
    #: its pre-training takes features of texts with words left out, where there are any
    reads_text_dropped: ClassVar[bool] = False

    def __init__(self, settings: Any, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__()
        self.settings = settings
        self.n_items = catalogue.n_items
        self.max_length: int = settings.max_length

    # -- what a system implements

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """All that depends on items alone, row 0 for padding: [M + 1, ...] each.

        Args:
            ids: [M] int64 item ids in 1..N; None for the whole catalogue.
        """
        raise AssertionError(f"{type(self).__name__} does not implement item_tables")

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """User vectors [B, D] of rows of similar length."""
        raise AssertionError(f"{type(self).__name__} does not implement encode")

    def candidates(self, tables: Tables) -> Tensor:
        """Candidate vectors [M, D] such that ``users @ candidates.T`` are the scores."""
        return tables[0][1:]

    def extra_candidates(self, tables: Tables) -> Tensor | None:
        """Further vectors [K, D] that compete with the catalogue in ranks (the pad item of released MMM4Rec)."""
        return None

    def frozen(self) -> Iterable[str]:
        """Prefixes of parameter names that stay as pre-trained during fine-tuning."""
        return ()

    def carried_over(self, name: str) -> bool:
        """Whether pre-training hands this entry of the state over to fine-tuning."""
        return True

    # -- what the engine calls

    def users(self, tables: Tables, rows: Rows) -> Tensor:
        """User vectors [B, D]."""
        return self.encode_rows(tables, rows)

    def encode_rows(self, tables: Tables, rows: Rows) -> Tensor:
        """What ``encode`` gives of each row, [B, ...]; rows go through it in chunks of similar length.

        Pre-training on several devices divides this among them (``mmm4rec.training.distributed``).
        """
        if self.fixed_length:
            return self.encode(tables, rows)
        if rows.items.device.type != "cpu":  # which would be waited for there, to learn how many items are at hand
            return by_length(partial(self.encode, tables), rows)
        # only the items at hand, so that no chunk's gradient is as large as the catalogue
        at_hand, items = nn.functional.pad(rows.items, (1, 0)).unique(return_inverse=True)
        few = tuple(table[at_hand] for table in tables)
        return by_length(partial(self.encode, few), replace(rows, items=items[:, 1:]))

    def scores(self, tables: Tables, users: Tensor) -> Tensor:
        """Scores [B, M] of all items at hand, in memory of their own: ranking overwrites them."""
        return users @ self._candidates(tables, users).T

    def finetune_loss(self, tables: Tables, rows: Rows) -> Tensor:
        """Sum over the rows of a batch of the loss on a target; the engine divides by the batch size."""
        return self.catalogue_loss(tables, self.users(tables, rows), rows.targets)

    def catalogue_loss(self, tables: Tables, users: Tensor, targets: Tensor) -> Tensor:
        """Sum over users [B, D] of the cross-entropy of their targets [B] over the whole catalogue."""
        return full_cross_entropy(users, self._candidates(tables, users), targets - 1, reduction="sum")

    def pretrain_loss(self, tables: Tables, rows: Rows) -> Tensor:
        """Mean over the rows of a batch of the loss of pre-training."""
        size = len(rows.targets)
        places = torch.arange(size, device=rows.targets.device)
        return self.in_batch_losses(tables, rows, Batches(size, [size], places, rows.targets))

    def in_batch_loss(self, users: Tensor, candidates: Tensor, targets: Tensor, places: Tensor) -> Tensor:
        """Sum over users of the cross-entropy over a batch's targets; duplicates of a target are masked out.

        Args:
            users: [R, D], of some rows of the batch.
            candidates: [B, D], the vectors of its targets.
            targets: [B], which tell duplicates.
            places: [R] int64, where in the batch each user's row stands.
        """
        return in_batch_cross_entropy(users, candidates, targets, "masked", places, "sum")

    def in_batch_losses(self, tables: Tables, rows: Rows, batches: Batches) -> Tensor:
        """Sum over the rows of each one's ``in_batch_loss``, divided by the batch size."""
        users = self.users(tables, rows)
        candidates = self._candidates(tables, users)[batches.targets - 1]
        of_rows = (v.split(batches.counts) for v in (users, batches.places))
        of_batches = (v.split(batches.size) for v in (candidates, batches.targets))
        each = zip(*of_rows, *of_batches, strict=True)
        losses = [self.in_batch_loss(u, vectors, targets, places) for u, places, vectors, targets in each if len(u)]
        return torch.stack(losses).sum() / batches.size

    def _candidates(self, tables: Tables, users: Tensor) -> Tensor:
        """``candidates``, which fit the users."""
        candidates, n_items = self.candidates(tables), len(tables[0]) - 1
        assert users.dim() == 2, f"{type(self).__name__}.users: a vector a row is [B, D], found {list(users.shape)}"
        assert candidates.shape == (n_items, users.shape[1]), (
            f"{type(self).__name__}.candidates: expected {[n_items, users.shape[1]]}, without the padding, for users "
            f"{list(users.shape)}, found {list(candidates.shape)}"
        )
        return candidates

    @property
    def encodes_together(self) -> bool:
        """Whether rows of several batches can be encoded as one: no loss takes more of a row than its vector.

        That holds for the losses here, and is not assumed of one that overrides them. Rows that are all of one length
        gain nothing by it.
        """
        own = type(self)
        return (
            not self.fixed_length
            and own.finetune_loss is System.finetune_loss
            and own.pretrain_loss is System.pretrain_loss
        )

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch (clusters to be redrawn, stages to be switched)."""

    def settling_epochs(self) -> int:
        """First epochs of fine-tuning in which most is still held back, so that they tell nothing of when to stop."""
        return 0


#: what starting another chunk costs, counted in positions that could be computed meanwhile
CHUNK_COST = {"cpu": 128, "cuda": 16384}
#: positions of a chunk: larger ones leave a processor's caches
CHUNK_POSITIONS = {"cpu": 2560, "cuda": 2**22}


def by_length(encode: Callable[[Rows], Tensor], rows: Rows) -> Tensor:
    """Apply ``encode`` to chunks of rows of similar length.

    Every row's result is the same as in one piece; only padding is saved.
    """
    pieces, parts = zip(*((piece, encode(part)) for piece, part in chunks_by_length(rows)), strict=True)
    for piece, part in zip(pieces, parts, strict=True):
        assert len(piece) == len(part), f"encode: something of each of {len(piece)} rows is wanted, found {len(part)}"
    order = torch.cat(pieces)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return torch.cat(parts)[back]


def chunks_by_length(rows: Rows) -> Iterator[tuple[Tensor, Rows]]:
    """Every row once, in chunks of similar length, short ones first: which rows, and they, cut to the longest."""
    device = rows.lengths.device.type
    lengths = rows.lengths if rows.host_lengths is None else rows.host_lengths
    order = torch.argsort(rows.lengths, stable=True)
    start = 0
    for end, length in length_chunks(lengths.bincount().tolist(), CHUNK_COST[device]):
        for piece in order[start:end].split(max(1, CHUNK_POSITIONS[device] // length)):
            yield piece, rows.select(piece, length)
        start = end


def length_chunks(counts: list[int], chunk_cost: int) -> list[tuple[int, int]]:
    """Cut rows sorted by length into chunks such that positions computed, plus ``chunk_cost`` a chunk, are fewest.

    Args:
        counts: rows of length 0, 1, 2, ...
        chunk_cost: cost of a chunk, in positions.

    Returns:
        (end, length) of each chunk: it reaches to row ``end`` and its longest row has ``length`` positions.

    >>> length_chunks([0, 100, 0, 100, 1], chunk_cost=50)
    [(100, 1), (201, 4)]
    """
    steps = [(end, length) for length, end in enumerate(accumulate(counts)) if counts[length]]
    cheapest: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]  # for the rows up to each step
    for k, (end, length) in enumerate(steps):
        starts = [0] + [e for e, _ in steps[:k]]
        costs = [cheapest[j][0] + (end - start) * length + chunk_cost for j, start in enumerate(starts)]
        j = min(range(len(costs)), key=costs.__getitem__)
        cheapest.append((costs[j], [*cheapest[j][1], (end, length)]))
    return cheapest[-1][1]


def model_class(key: str) -> type[System]:
    """The class behind a settings file's ``model`` key: ``MODEL`` of ``mmm4rec.models.<key>``.

    Raises:
        UserError: there is none.
    """
    module = importlib.import_module(f"mmm4rec.models.{key}")
    model = getattr(module, "MODEL", None)
    if not (isinstance(model, type) and issubclass(model, System)):
        raise UserError(f"{module.__file__}: MODEL = <class> is missing, a subclass of mmm4rec.models.base.System")
    return model


def build(key: str, settings: dict[str, Any], catalogue: Catalogue, *, pretraining: bool = False) -> System:
    """Build a system from its plain settings, for pre-training or for a target.

    Raises:
        UserError: a setting is unknown or has a wrong value.
    """
    cls = model_class(key)
    return cls(validated(cls.Settings, settings, f"settings of {key}"), catalogue, pretraining=pretraining)
