"""Events of a prepared domain on the training device, and batches cut from them.

A training row is one event: the target. Its history is what the same user did before it. So rows are plain indices into
the flat event arrays, and no prefix is ever copied. What has to be known of a batch to plan it (how long its rows are,
which items they hold) is looked up in the host's copy of the events, so that the host never waits for a GPU.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mmm4rec.errors import UserError
from mmm4rec.features.store import read_features
from mmm4rec.models.base import Catalogue, Rows

MIN_RANKED_EVENTS = 3  # a history, a validation item and a test item


@dataclass(frozen=True)
class Events:
    """All events, user after user, in the order of time.

    Attributes:
        items: [E] int64 item ids, 1..n_items.
        times: [E] int64 unix seconds, 0 where unknown; None if no event has a time.
        timed: [E] bool, whether the time is known; None with ``times``.
        first: [E] int64, index of the first event of the same user.
        offsets: [U + 1] int64, where each user's events begin.
        users: [U] int64 user ids.
        n_items: size of the catalogue.
        on_host: the same in the host's memory; None if they are there already.
    """

    items: Tensor
    times: Tensor | None
    timed: Tensor | None
    first: Tensor
    offsets: Tensor
    users: Tensor
    n_items: int
    on_host: "Events | None" = None

    def to(self, device: torch.device) -> "Events":
        """The same events, which are in the host's memory, on the training device too."""
        assert self.on_host is None, "these events are on a device already"
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, on_host=self, **moved)

    @property
    def host(self) -> "Events":
        """The events in the host's memory; rows and what is asked of them lie there too."""
        return self.on_host or self

    @property
    def ranked(self) -> Tensor:
        """[U] bool: users with enough events to be ranked; the others' events all train."""
        return self.host.offsets.diff() >= MIN_RANKED_EVENTS

    def train_rows(self) -> Tensor:
        """Targets of fine-tuning: every event with a history, less the last two of a ranked user."""
        host, counts = self.host, self.host.offsets.diff()
        held_out = torch.where(self.ranked, 2, 0).repeat_interleave(counts)
        end = host.offsets[1:].repeat_interleave(counts) - held_out
        index = torch.arange(len(host.items))
        return index[(index > host.first) & (index < end)]

    def all_rows(self) -> Tensor:
        """Targets of pre-training: every event with a history, nothing held out."""
        index = torch.arange(len(self.host.items))
        return index[index > self.host.first]

    def valid_rows(self) -> Tensor:
        """The last but one event of every ranked user."""
        return self.host.offsets[1:][self.ranked] - 2

    def test_rows(self) -> Tensor:
        """The last event of every ranked user."""
        return self.host.offsets[1:][self.ranked] - 1

    def popularity(self) -> Tensor:
        """[n_items + 1] events an item, without the held-out ones; 0 for padding."""
        held_out = torch.cat([self.valid_rows(), self.test_rows()])
        keep = torch.ones_like(self.host.items, dtype=torch.bool)
        keep[held_out] = False
        return torch.bincount(self.host.items[keep], minlength=self.n_items + 1)

    def lengths(self, targets: Tensor, max_length: int) -> Tensor:
        """How many of the last ``max_length`` events before each of the ``targets`` [B] there are."""
        return (targets - self.host.first[targets]).clamp(max=max_length)

    def items_at_hand(self, targets: Tensor, max_length: int) -> Tensor:
        """Items [M] of the rows that end before ``targets`` [B] and of the targets, each once, ascending.

        A mark for every item takes a tenth of the time of a sort.
        """
        counts = self.lengths(targets, max_length) + 1
        start = (targets + 1 - counts.cumsum(0)).repeat_interleave(counts)
        marks = torch.zeros(self.n_items + 1, dtype=torch.bool)
        marks[self.host.items[start + torch.arange(len(start))]] = True
        return marks.nonzero()[:, 0]

    def batch(self, targets: Tensor, max_length: int, *, time: bool = False, target_time: bool = False) -> Rows:
        """Cut the rows that end before ``targets``, without waiting for the device.

        Args:
            targets: [B] int64 event indices, in the host's memory.
            max_length: L; a row keeps the last L events before its target.
            time: give the rows their times.
            target_time: leave the target's time in the first padded position, a leak (``System.target_time_in_row``).
        """
        host_lengths = self.lengths(targets, max_length)
        targets, lengths = (send(v, self.items.device) for v in (targets, host_lengths))
        start = targets - lengths
        span = torch.arange(max_length, device=targets.device)
        # the target itself stands at position `length`: reading so far never leaves the array
        index = torch.minimum(start[:, None] + span, targets[:, None])
        real = span < lengths[:, None]
        width = int(host_lengths.max())
        items = torch.where(real[:, :width], self.items[index[:, :width]], 0)
        times = has_time = None
        if time and self.times is not None and self.timed is not None:
            shown = span <= lengths[:, None] if target_time else real
            times = torch.where(shown, self.times[index], 0)
            has_time = (self.timed[index] | ~shown).all(dim=1)
        return Rows(items, lengths, self.items[targets], times, has_time, host_lengths)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's, on the device: the host goes on before it has arrived."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def load_events(domains: Sequence[Path]) -> Events:
    """Read prepared domains; items of the second follow those of the first, users never cross domains.

    Raises:
        UserError: a file is missing or is not a prepared domain.
    """
    parts = [_read_domain(path) for path in domains]
    item_shift = np.cumsum([0, *(n for *_, n in parts)])
    items = np.concatenate([part[1] + shift for part, shift in zip(parts, item_shift[:-1], strict=True)])
    user_shift = np.cumsum([0, *(int(part[0].max(initial=0)) for part in parts)])
    users = np.concatenate([part[0] + shift for part, shift in zip(parts, user_shift[:-1], strict=True)])
    times = np.concatenate([part[2] for part in parts])
    timed = np.concatenate([part[3] for part in parts])
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    offsets = np.append(starts, len(users))
    return Events(
        items=torch.from_numpy(items),
        times=torch.from_numpy(times) if timed.any() else None,
        timed=torch.from_numpy(timed) if timed.any() else None,
        first=torch.from_numpy(np.repeat(starts, np.diff(offsets))),
        offsets=torch.from_numpy(offsets),
        users=torch.from_numpy(users[starts]),
        n_items=int(item_shift[-1]),
    )


def _read_domain(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Users, items, times (0 where unknown), whether known, and the number of items of one prepared domain."""
    try:
        table = pq.read_table(path / "interactions.parquet", columns=["user_id", "item_id", "position", "timestamp"])
        n_items = pq.read_metadata(path / "items.parquet").num_rows
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: not a prepared domain ({error}); run `mmm4rec prepare` for it first") from None
    users, items, position = (table[c].to_numpy().astype(np.int64) for c in ("user_id", "item_id", "position"))
    step, order = np.diff(users), np.diff(position)
    assert ((step > 0) | ((step == 0) & (order > 0))).all(), f"{path}: interactions are not sorted"
    assert items.min(initial=1) >= 1, path
    assert items.max(initial=1) <= n_items, path
    timed = table["timestamp"].is_valid().to_numpy()
    times = table["timestamp"].fill_null(0).to_numpy().astype(np.int64)
    return users, items, times, timed, n_items


def load_catalogue(
    events: Events,
    domains: Sequence[Path],
    features: Sequence[Path],
    reads: Sequence[str],
    missing_image: str,
    *,
    text_dropped: bool = False,
) -> Catalogue:
    """What a system may know before training: features and attributes it reads, popularity, whether there are times.

    Args:
        events: of the domains.
        domains: the prepared domains.
        features: their features, in the same order.
        reads: what the system reads.
        missing_image: policy for items without an image.
        text_dropped: it takes features of texts with words left out, too.

    Raises:
        UserError: the system reads features and none are given, or they are not those of the domains' items in their
            order, or do not fit together.
    """
    known = Catalogue(
        n_items=events.n_items,
        has_time=events.timed is not None,
        all_timed=events.timed is not None and bool(events.timed.all()),
        popularity=events.popularity(),
        attributes=read_attributes(domains) if "attributes" in reads else None,
        missing_image=missing_image,
    )
    if not {"text", "image"} & set(reads):
        return known
    if not features:
        raise UserError(f"this system reads {', '.join(reads)}: give it the domain's features")
    if len(features) != len(domains):
        raise UserError(
            f"{len(features)} files of features for {len(domains)} domains; give one for each, in their order"
        )
    parts = [read_features(path, text_dropped=text_dropped) for path in features]
    for path, part, domain in zip(features, parts, domains, strict=True):
        items = raw_item_ids(domain)
        if not np.array_equal(part.items, items):
            raise UserError(
                f"{path}: its {len(part.items)} items are not the {len(items)} that {domain} has now, in their order; "
                "import the features again, or make them with `mmm4rec embed`"
            )
    text, has_text = _stack([(p.text, p.has_text) for p in parts], features)
    image, has_image = _stack([(p.image, p.has_image) for p in parts], features)
    text, image = (text if "text" in reads else None), (image if "image" in reads else None)
    dropped = None
    if any(p.text_dropped is not None for p in parts):
        whole_or_not = [(p.text if p.text_dropped is None else p.text_dropped, p.has_text) for p in parts]
        dropped, _ = _stack(whole_or_not, features)
    return replace(known, text=text, image=image, has_text=has_text, has_image=has_image, text_dropped=dropped)


def raw_item_ids(domain: Path) -> np.ndarray:
    """Raw ids (str) of the items 1..N of a prepared domain, [N]."""
    return pq.read_table(domain / "items.parquet", columns=["item"])["item"].to_numpy()


def items_digest(items: np.ndarray) -> str:
    """Sha256 over raw ids [N] in their order: which items the numbers 1..N in weights stand for."""
    return hashlib.sha256(json.dumps(items.tolist()).encode()).hexdigest()


def read_attributes(domains: Sequence[Path]) -> Tensor | None:
    """Brand and categories of every item, as numbers 1..A in the order in which the items have them.

    A brand and a category of the same name are two attributes; the same one in two domains is one.

    Returns:
        [N + 1, C] int64, each attribute of an item once, 0 pads; None if no item has any.
    """
    numbers: dict[tuple[str, str], int] = {}
    rows: list[list[int]] = [[]]  # of the padding
    for path in domains:
        file = path / "items.parquet"
        there = set(pq.read_schema(file).names)
        for item in pq.read_table(file, columns=["item_id", *sorted(there & {"brand", "categories"})]).to_pylist():
            names = [("brand", item.get("brand")), *(("category", name) for name in item.get("categories") or [])]
            named = dict.fromkeys((kind, name) for kind, name in names if name)
            rows.append([numbers.setdefault(name, len(numbers) + 1) for name in named])
    if not numbers:
        return None
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def _stack(columns: list[tuple[np.ndarray | None, np.ndarray]], paths: Sequence[Path]) -> tuple[Tensor | None, Tensor]:
    """One modality of several domains under each other, a zero row for padding in front; missing rows are zero."""
    present = np.concatenate([[False], *(has for _, has in columns)])
    widths = {values.shape[1] for values, _ in columns if values is not None}
    if not widths:
        return None, torch.from_numpy(present)
    if len(widths) > 1:
        names = ", ".join(map(str, paths))
        raise UserError(f"{names}: features of different widths {sorted(widths)} cannot be trained together")
    (width,) = widths
    values = [np.zeros((len(has), width), np.float16) if part is None else part for part, has in columns]
    stacked = np.zeros((len(present), width), np.result_type(*values))
    np.concatenate(values, out=stacked[1:])
    return torch.from_numpy(stacked), torch.from_numpy(present)
