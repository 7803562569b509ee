"""Raw events and what is to be found out about them: in memory, or, where they are too many, in parts on disk."""

import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmm4rec.data.kcore import k_core
from mmm4rec.data.parse import RawEvents

logger = logging.getLogger(__name__)

BYTES_AN_EVENT = 130  # of memory, from ratings of Amazon Reviews to their k-core
FOR_EVENTS = 0.7  # of the memory; the rest is for the interpreter, the metadata and the processes that read it
MOST_PARTS = 256
GOLDEN = 0x9E3779B97F4A7C15  # an odd number near 2**64 / 1.618: multiples of it are far apart


class Sizes(NamedTuple):
    """How many users, items and events there are."""

    users: int
    items: int
    interactions: int


class Coded(NamedTuple):
    """Events whose columns ``user`` and ``item`` are codes 0, 1, …, and the id that each code stands for."""

    events: pl.DataFrame
    users: pl.Series
    items: pl.Series


@contextmanager
def opened(raw: RawEvents, memory: int, folder: Path) -> Iterator["InMemory | OnDisk"]:
    """Events of a file, in memory if they fit into their share of ``memory`` bytes, else in parts below ``folder``.

    The parts are gone in the end.

    Raises:
        UserError: the file is truncated, or a line or row (named) is not as it should be.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    n, enough = raw.count(), int(FOR_EVENTS * memory / BYTES_AN_EVENT)
    if n <= enough:
        yield InMemory(raw)
        return
    parts = min(math.ceil(4 * n / enough), MOST_PARTS)
    logger.info("%s: %s events, of which %s fit in memory; read in %s parts", raw.path, n, enough, parts)
    try:
        yield OnDisk(raw, folder, parts, enough)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class InMemory:
    """All events at once."""

    def __init__(self, raw: RawEvents) -> None:
        self.coded = with_codes(raw.whole())
        self.has_position = "position" in self.coded.events.columns

    def sizes(self, items: pl.Series | None = None) -> Sizes:
        """Users, items and events; of the events with these items alone, if given."""
        return sizes_of(self.coded.events if items is None else with_items(self.coded, items))

    def deduplicate(self) -> None:
        """Of events that are equal in all columns, keep the first."""
        self.coded = self.coded._replace(events=without_duplicates(self.coded.events))

    def k_core(self, k: int) -> Coded:
        """The events of the k-core."""
        return self.coded._replace(events=k_core_of(self.coded.events, k))


class OnDisk:
    """The same, bit for bit, with all events of a user in one part, and one part in memory at a time.

    What has to fit in memory is a number a user, all items, and the k-core, which a training holds too.

    Args:
        raw: the file of events.
        folder: where the parts are written.
        parts: how many.
        enough: events that fit in memory.
    """

    def __init__(self, raw: RawEvents, folder: Path, parts: int, enough: int) -> None:
        self.path, self.folder, self.enough = raw.path, folder, enough
        by_user = pl.PartitionBy(
            folder, key={"part": pl.col(raw.user).hash() % parts}, include_key=False, approximate_bytes_per_file=None
        )
        with raw.errors():
            raw.rows.with_row_index("row").sink_parquet(by_user, mkdir=True, compression="lz4")
        self.first: list[pl.Series] = []  # of each part's users, the row of the file in which they first appear
        self.items: pl.Series | None = None
        for path in self._parts():
            events = raw.checked(_read(path).sort("row"))
            self.has_position = "position" in events.columns
            self.first.append(events["row"].filter(events["user"].is_first_distinct()))
            users, names = encode(events["user"])  # of each part, codes 0, 1, … of its own
            names.to_frame().write_parquet(self._names(path), compression="lz4")
            items = self._codes_of(events["item"])
            events.with_columns(pl.Series("user", users), items).write_parquet(path, compression="lz4")

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*/*.parquet"))

    @staticmethod
    def _names(part: Path) -> Path:
        return part.with_suffix(".users")

    def _codes_of(self, items: pl.Series) -> pl.Series:
        """Codes of items, by first appearance in whatever order the parts are read."""
        names = items if self.items is None else pl.concat([self.items, items])
        self.items = names.unique(maintain_order=True)
        codes = self.items.to_frame().with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("code"))
        return items.to_frame().join(codes, on="item", how="left", maintain_order="left")["code"].alias("item")

    def _codes(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Users and items of each part."""
        for path in self._parts():
            part = _read(path, ["user", "item"])
            yield part["user"].to_numpy(), part["item"].to_numpy()

    def sizes(self, items: pl.Series | None = None) -> Sizes:
        """Users, items and events; of the events with these items alone, if given."""
        assert self.items is not None
        kept = np.ones(len(self.items), bool) if items is None else self.items.is_in(items.implode()).to_numpy()
        of_item, users = np.zeros(len(kept), np.int64), 0
        for user, item in self._codes():
            of_item += np.bincount(item[kept[item]], minlength=len(kept))
            users += int(np.count_nonzero(np.bincount(user[kept[item]])))
        return Sizes(users, int(np.count_nonzero(of_item)), int(of_item.sum()))

    def deduplicate(self) -> None:
        """Of events that are equal in all columns, keep the first."""
        for path in self._parts():
            part = _read(path)
            columns = [name for name in part.columns if name != "row"]
            part.unique(columns, keep="first", maintain_order=True).write_parquet(path, compression="lz4")

    def k_core(self, k: int) -> Coded:
        """The events of the k-core. Filtered in parts only until what is left fits in memory."""
        assert self.items is not None
        kept = np.ones(len(self.items), bool)  # items that have had enough events so far
        while True:
            of_item = np.zeros(len(kept), np.int64)
            for user, item in self._codes():
                of_item += np.bincount(item[_of_degree(k, user, kept[item])], minlength=len(kept))
            few = (of_item > 0) & (of_item < k)
            logger.info("%s: %s events of %s items are left", self.path, of_item.sum(), np.count_nonzero(of_item))
            if of_item.sum() <= self.enough or not few.any():
                break
            kept &= ~few

        n_users, events, users, first = 0, [], [], []
        for path, rows in zip(self._parts(), self.first, strict=True):
            part = _read(path).drop("row")
            part = part.filter(pl.Series(_of_degree(k, part["user"].to_numpy(), kept[part["item"].to_numpy()])))
            stay = pl.Series(np.flatnonzero(np.bincount(part["user"].to_numpy())))
            codes = np.searchsorted(stay.to_numpy(), part["user"].to_numpy()) + n_users
            events.append(part.with_columns(pl.Series("user", codes)))
            users.append(_read(self._names(path))["user"].gather(stay))
            first.append(rows.gather(stay))
            n_users += len(stay)
        left, user_names = pl.concat(events), pl.concat(users)
        user_codes, user_names = reordered(left["user"].to_numpy(), user_names, pl.concat(first).arg_sort())
        item_codes, item_names = reordered(left["item"].to_numpy(), self.items, self.items.arg_sort())
        left = left.with_columns(pl.Series("user", user_codes), pl.Series("item", item_codes))
        return Coded(k_core_of(left, k), user_names, item_names)


def _read(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    return pl.read_parquet(path, columns=columns, glob=False)  # the folder may have a * in its name


def _of_degree(k: int, users: NDArray[np.int32], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the events that are kept are those of users who have at least ``k`` of them; all [E]."""
    return kept & (np.bincount(users[kept], minlength=users.max(initial=-1) + 1) >= k)[users]


# ------------------------------------------------------------------------------------------------ events as codes


def sizes_of(events: pl.DataFrame) -> Sizes:
    """Sizes of events whose columns ``user`` and ``item`` are codes."""
    users, items = (int(np.count_nonzero(np.bincount(events[c].to_numpy()))) for c in ("user", "item"))
    return Sizes(users, items, len(events))


def with_items(coded: Coded, items: pl.Series) -> pl.DataFrame:
    """The events with these items, a series of ids."""
    kept = coded.items.is_in(items.implode()).to_numpy()
    return coded.events.filter(pl.Series(kept[coded.events["item"].to_numpy()]))


def with_codes(events: pl.DataFrame) -> Coded:
    """Codes in the place of ids: users' by first appearance, items' in sorted order (integers by value)."""
    users, user_names = encode(events["user"])
    items, item_names = encode(events["item"])
    items, item_names = reordered(items, item_names, item_names.arg_sort())
    return Coded(events.with_columns(pl.Series("user", users), pl.Series("item", items)), user_names, item_names)


def reordered(codes: NDArray[np.int32], names: pl.Series, order: pl.Series) -> tuple[NDArray[np.int32], pl.Series]:
    """The same with other codes: 0 for the name that ``order`` has first, and so on."""
    return np.argsort(order.to_numpy()).astype(np.int32)[codes], names.gather(order)


def encode(values: pl.Series) -> tuple[NDArray[np.int32], pl.Series]:
    """Codes 0, 1, … by first appearance, [E], and the value that each stands for.

    Values are told apart by 64-bit hashes: numbers are far quicker to look up than strings. Should two values share
    one, another hash tells, and another seed is taken.
    """
    for seed in count():
        first = first_occurrences(values.hash(seed).to_numpy())
        other = values.hash(seed + 1).to_numpy()
        if np.array_equal(other.take(first), other):
            break
    appears = first == np.arange(len(first), dtype=np.int32)
    return (np.cumsum(appears, dtype=np.int32) - 1).take(first), values.filter(pl.Series(appears))


def first_occurrences(keys: NDArray[np.uint64]) -> NDArray[np.int32]:
    """For each row [E] the first one that has the same key.

    A hash table of all rows at once: each writes its number into the slot of its key, from the last to the first, so
    that the first one's stays. Rows that find another key's in theirs try again with another slot.
    """
    bits = max(1, (2 * len(keys)).bit_length())
    slots = np.empty(2**bits, np.int32)
    first = np.empty(len(keys), np.int32)
    row, key, factor = np.arange(len(keys), dtype=np.int32), keys, GOLDEN
    while len(row):
        slot = (key * np.uint64(factor) >> np.uint64(64 - bits)).view(np.int64)
        slots[slot[::-1]] = row[::-1]
        found = slots.take(slot)  # twice as quick as slots[slot]
        first[row] = found  # of those with another's key, written over in a later turn
        row = row[keys.take(found) != key]
        key, factor = keys.take(row), factor * GOLDEN % 2**64
    return first


def without_duplicates(events: pl.DataFrame) -> pl.DataFrame:
    """The first of events that are equal in all columns, in their order; columns ``user`` and ``item`` are codes."""
    n_items = len(np.bincount(events["item"].to_numpy()))
    pair = events["user"].cast(pl.Int64) * n_items + events["item"]
    ordered = np.sort(pair.to_numpy())
    twice = pl.Series(ordered[1:][ordered[1:] == ordered[:-1]]).unique()
    suspect = pair.is_in(twice.implode())  # the same user and item; most pairs are there once
    rows = events.with_row_index("row").filter(suspect)
    kept = rows.unique(events.columns, maintain_order=True, keep="first")["row"]
    stays = ~suspect.to_numpy()
    stays[kept.to_numpy()] = True
    return events.filter(pl.Series(stays))


def k_core_of(events: pl.DataFrame, k: int) -> pl.DataFrame:
    """The events of the k-core; columns ``user`` and ``item``."""
    return events.filter(pl.Series(k_core(events["user"].to_numpy(), events["item"].to_numpy(), k)))
