"""From raw events to a prepared domain: filters, the k-core, ids 1..U and 1..N, and statistics after every stage."""

import csv
import io
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mmm4rec.data import parse
from mmm4rec.data.events import Sizes, k_core_of, opened, sizes_of, with_items
from mmm4rec.data.text import item_text
from mmm4rec.errors import UserError
from mmm4rec.features.store import log_rows
from mmm4rec.io import write_parquet, write_text

logger = logging.getLogger(__name__)

EARLIEST = 631_152_000  # seconds: the year 1990; hardly any domain's latest event is older
INTERACTIONS = pa.schema(
    [("user_id", pa.int32()), ("item_id", pa.int32()), ("position", pa.int32()), ("timestamp", pa.int64())]
)
ITEMS = pa.schema(
    [
        ("item_id", pa.int32()),
        ("item", pa.string()),
        ("text", pa.string()),
        ("image", pa.string()),
        ("title", pa.string()),
        ("brand", pa.string()),
        ("categories", pa.list_(pa.string())),
        ("description", pa.string()),
    ]
)
USERS = pa.schema([("user_id", pa.int32()), ("user", pa.string())])


class Statistics:
    """Users, items and events after every stage, logged as they come."""

    def __init__(self, domain: str) -> None:
        self.domain = domain
        self.rows: list[dict[str, Any]] = []

    def add(self, stage: str, sizes: Sizes) -> None:
        """What is left after a stage."""
        mean = f"{sizes.interactions / max(sizes.users, 1):.2f}"
        self.rows.append({"stage": stage, **sizes._asdict(), "mean_length": mean})
        logger.info("%s, %s: %s users, %s items, %s events, %s a user", self.domain, stage, *sizes, mean)

    def write(self, path: Path) -> None:
        """Write them as CSV, a stage a row."""
        file = io.StringIO()
        writer = csv.DictWriter(file, self.rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(path, file.getvalue())


def prepare(
    settings: dict[str, Any],
    out: Path,
    *,
    ratings: Path | None = None,
    metadata: Path | None = None,
    interactions: Path | None = None,
    items: Path | None = None,
    memory_mb: int = 8000,
) -> None:
    """Write the prepared domain ``out`` (docs/architecture.md says what is in it).

    Stages: exact duplicates (same user, item, rating and time) go, unless events come with positions; items of Amazon
    Reviews without metadata go; the k-core. The same input gives the same bytes.

    Args:
        settings: what ``mmm4rec.config.prepare_settings`` gives.
        out: folder of the prepared domain.
        ratings: raw ratings of an Amazon category; ``metadata`` comes with them.
        metadata: raw metadata of the same category.
        interactions: a user's own events, instead of the two.
        items: a user's own items; those without a row stay, without text and image.
        memory_mb: megabytes to take; more raw events than fit into 0.7 of them are read in parts, by way of files
            beside ``out``. The result is the same.

    Raises:
        UserError: an input file is not as it should be, or no event is left.
    """
    domain, k = settings["domain"], settings["k_core"]
    statistics = Statistics(domain)
    if settings["amazon"] is not None:
        assert ratings is not None
        assert metadata is not None
        source = parse.read_ratings(ratings, settings["edition"])
    else:
        assert interactions is not None
        source = parse.read_interactions(interactions)
    with opened(source, memory_mb * 10**6, out.parent / f".{out.name}.parts") as raw:
        statistics.add("raw", sizes := raw.sizes())
        if not sizes.interactions:
            raise UserError(f"{source.path}: there is no event in it; domain {domain!r} needs some")
        if not raw.has_position:
            raw.deduplicate()
            statistics.add("deduplicated", raw.sizes())
        core = raw.k_core(k)
        events = core.events
        if metadata is not None:
            # Whatever the metadata lacks, what is left in the end is part of the k-core of all events.
            wanted = core.items.gather(np.flatnonzero(np.bincount(events["item"].to_numpy())))
            ids, described = parse.read_metadata(metadata, settings["edition"], frozenset(wanted))
            present = pl.Series(list(ids), dtype=pl.String)
            statistics.add("with_metadata", raw.sizes(present))
            events = k_core_of(with_items(core, present), k)
        else:
            described = parse.read_items(items) if items is not None else pl.DataFrame(parse.ITEM_SCHEMA.empty_table())
    statistics.add("k_core", sizes_of(events))
    if events.is_empty():
        last = next((row for row in reversed(statistics.rows) if row["interactions"]), statistics.rows[0])
        raise UserError(
            f"domain {domain!r}: no event is left after `k_core: {k}` (stage {last['stage']} before it: "
            f"{last['interactions']} events of {last['users']} users and {last['items']} items); set a smaller `k_core`"
        )

    user_names, item_names, events = renumber(events, core.users, core.items)
    _check_times(events, source.path)
    if items is not None:
        _check_known(described["item"], item_names.cast(pl.String), items)
    text_fields, is_amazon = settings["text_fields"], settings["amazon"] is not None
    write_parquet(out / "interactions.parquet", to_arrow(events, INTERACTIONS))
    write_parquet(out / "items.parquet", to_arrow(_describe(item_names, described, text_fields, is_amazon), ITEMS))
    users = pl.DataFrame({"user": user_names.cast(pl.String)}).with_row_index("user_id", offset=1)
    write_parquet(out / "users.parquet", to_arrow(users, USERS))
    statistics.write(out / "statistics.csv")


def renumber(
    events: pl.DataFrame, user_names: pl.Series, item_names: pl.Series
) -> tuple[pl.Series, pl.Series, pl.DataFrame]:
    """Ids 1..U and 1..N for what is left, and the events in order of (user, time, row of the raw file)."""
    (users, user_ids), (items, item_ids) = (_ids(events[column].to_numpy()) for column in ("user", "item"))
    order = "position" if "position" in events.columns else "timestamp"
    events = events.with_columns(
        pl.Series("user_id", user_ids),
        pl.Series("item_id", item_ids),
        *(pl.lit(None, pl.Int64).alias("timestamp") for _ in range("timestamp" not in events.columns)),
    )
    lowest, highest = events[order].min() or 0, events[order].max() or 0
    span = highest - lowest + 1  # type: ignore[operator]
    if span * (len(users) + 1) < 2**63:  # one number to sort by is thrice as quick as two
        key = pl.col("user_id").cast(pl.Int64) * span + (pl.col(order) - lowest)
        events = events.sort(key, maintain_order=True)
    else:
        events = events.sort("user_id", order, maintain_order=True)
    counts = np.bincount(events["user_id"].to_numpy(), minlength=1)
    begin = (np.cumsum(counts) - counts)[events["user_id"].to_numpy()]
    position = pl.Series("position", (np.arange(len(events)) - begin).astype(np.int32))
    return user_names.gather(users), item_names.gather(items), events.with_columns(position)


def _ids(codes: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The codes that occur, ascending, and 1, 2, … in their place."""
    occurs = np.bincount(codes) > 0
    return np.flatnonzero(occurs), np.cumsum(occurs, dtype=np.int32)[codes]


def _describe(item_names: pl.Series, described: pl.DataFrame, text_fields: Any, is_amazon: bool) -> pl.DataFrame:
    """Items 1..N with their cleaned fields and text."""
    items = pl.DataFrame({"item": item_names.cast(pl.String)}).with_row_index("item_id", offset=1)
    described = described.join(items, on="item", how="semi")
    built = [
        item_text(row, text_fields, asin=row["item"] if is_amazon else None)  # type: ignore[arg-type]
        for row in described.iter_rows(named=True)
    ]
    text = pl.Series("text", built, pl.String)
    described = described.with_columns(pl.coalesce("text", text) if "text" in described.columns else text)
    return items.join(described, on="item", how="left", maintain_order="left")


def _check_times(events: pl.DataFrame, path: Path) -> None:
    """Log a warning where timestamps can hardly be unix seconds; events of unknown time say nothing."""
    times = events["timestamp"].drop_nulls()
    if len(times) < 2:
        return
    earliest, latest = int(times.min()), int(times.max())  # type: ignore[arg-type]
    if earliest == latest:
        logger.warning(
            "%s: every `timestamp` is %d, which orders nothing; give unix seconds, or `position` in its place",
            *(path, latest),
        )
    elif latest < EARLIEST:
        logger.warning(
            "%s: the latest `timestamp` is %d, in unix seconds a day of %d; if these are dates (yyyymmdd) or numbers "
            "of days, make them seconds",
            *(path, latest, datetime.fromtimestamp(latest, UTC).year),
        )


def _check_known(described: pl.Series, names: pl.Series, items: Path) -> None:
    """Say how many items of the domain have a row in the user's own file; none is an error."""
    known = names.is_in(described.implode()).to_numpy()
    if not known.any():
        raise UserError(
            f"{items}: none of the domain's {len(names)} items has a row here; are ids written alike? The events have "
            f"{names[0]!r}, this file {described[0] if len(described) else 'no item'!r}"
        )
    log_rows(items, known, names)


def to_arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, in its types."""
    return frame.select(schema.names).rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)
