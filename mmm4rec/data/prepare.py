"""From raw events to a prepared domain: filters, the k-core, ids 1..U and 1..N, and statistics after every stage."""

import csv
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from mmm4rec.data import parse
from mmm4rec.data.kcore import k_core
from mmm4rec.data.text import item_text
from mmm4rec.errors import UserError
from mmm4rec.io import write_parquet, write_text

logger = logging.getLogger(__name__)

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

    def add(self, stage: str, events: pl.DataFrame) -> None:
        """Count the events' columns ``user`` and ``item``."""
        users, items, interactions = events["user"].n_unique(), events["item"].n_unique(), len(events)
        mean = f"{interactions / max(users, 1):.2f}"
        sizes = {"users": users, "items": items, "interactions": interactions, "mean_length": mean}
        self.rows.append({"stage": stage, **sizes})
        logger.info("%s, %s: %s users, %s items, %s events, %s a user", self.domain, stage, *sizes.values())

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

    Raises:
        UserError: an input file is not as it should be, or no event is left.
    """
    domain, k = settings["domain"], settings["k_core"]
    statistics = Statistics(domain)

    if settings["amazon"] is not None:
        assert ratings is not None
        assert metadata is not None
        raw = parse.read_ratings(ratings, settings["edition"])
    else:
        assert interactions is not None
        raw = parse.read_interactions(interactions)
    # Codes stand in for ids from here on: users by first appearance, items in sorted order (integers by value).
    user_names, item_names = raw["user"].unique(maintain_order=True), raw["item"].unique().sort()
    events = _encode(_encode(raw, user_names), item_names)
    del raw
    statistics.add("raw", events)
    if "position" not in events.columns:
        events = events.unique(maintain_order=True, keep="first")
        statistics.add("deduplicated", events)

    if metadata is not None:
        # Whatever the metadata lacks, the final items are among those of the k-core of all events: only these are kept.
        wanted = item_names.gather(k_core_of(events, k)["item"].unique())
        present, described = parse.read_metadata(metadata, settings["edition"], frozenset(wanted))
        events = _with_items(events, item_names, present)
        statistics.add("with_metadata", events)
    else:
        described = parse.read_items(items) if items is not None else pl.DataFrame(schema=parse.ITEM_SCHEMA)
    events = k_core_of(events, k)
    statistics.add("k_core", events)
    if events.is_empty():
        last = next((row for row in reversed(statistics.rows) if row["interactions"]), statistics.rows[0])
        raise UserError(
            f"domain {domain!r}: no event is left after `k_core: {k}` (stage {last['stage']} before it: "
            f"{last['interactions']} events of {last['users']} users and {last['items']} items); set a smaller `k_core`"
        )

    user_names, item_names, events = _renumber(events, user_names, item_names)
    text_fields, is_amazon = settings["text_fields"], settings["amazon"] is not None
    write_parquet(out / "interactions.parquet", to_arrow(events, INTERACTIONS))
    write_parquet(out / "items.parquet", to_arrow(_describe(item_names, described, text_fields, is_amazon), ITEMS))
    users = pl.DataFrame({"user": user_names.cast(pl.String)}).with_row_index("user_id", offset=1)
    write_parquet(out / "users.parquet", to_arrow(users, USERS))
    statistics.write(out / "statistics.csv")


def _encode(events: pl.DataFrame, names: pl.Series) -> pl.DataFrame:
    """Replace the ids of the column that ``names`` is called after by their rows in ``names``."""
    codes = names.to_frame().with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("code"))
    joined = events.join(codes, on=names.name, how="left", maintain_order="left")
    return joined.drop(names.name).rename({"code": names.name})


def k_core_of(events: pl.DataFrame, k: int) -> pl.DataFrame:
    """The events of the k-core; columns ``user`` and ``item``."""
    return events.filter(pl.Series(k_core(events["user"].to_numpy(), events["item"].to_numpy(), k)))


def _with_items(events: pl.DataFrame, item_names: pl.Series, keep: set[str]) -> pl.DataFrame:
    """Events of the items named in ``keep``."""
    is_kept = item_names.cast(pl.String).is_in(list(keep)).to_numpy()
    return events.filter(pl.Series(is_kept[events["item"].to_numpy()]))


def _renumber(
    events: pl.DataFrame, user_names: pl.Series, item_names: pl.Series
) -> tuple[pl.Series, pl.Series, pl.DataFrame]:
    """Ids 1..U and 1..N for what is left, and the events in order of (user, time, row of the raw file)."""
    users, user_ids = np.unique(events["user"].to_numpy(), return_inverse=True)
    items, item_ids = np.unique(events["item"].to_numpy(), return_inverse=True)
    order = "position" if "position" in events.columns else "timestamp"
    events = events.with_columns(
        pl.Series("user_id", user_ids, pl.Int32) + 1,
        pl.Series("item_id", item_ids, pl.Int32) + 1,
        *(pl.lit(None, pl.Int64).alias("timestamp") for _ in range("timestamp" not in events.columns)),
    ).sort("user_id", order, maintain_order=True)
    position = pl.int_range(pl.len(), dtype=pl.Int32).over("user_id").alias("position")
    return user_names.gather(users), item_names.gather(items), events.with_columns(position)


def _describe(item_names: pl.Series, described: pl.DataFrame, text_fields: Any, is_amazon: bool) -> pl.DataFrame:
    """Items 1..N with their cleaned fields and text."""
    items = pl.DataFrame({"item": item_names.cast(pl.String)}).with_row_index("item_id", offset=1)
    items = items.join(described, on="item", how="left", maintain_order="left")
    built = [
        item_text(row, text_fields, asin=row["item"] if is_amazon else None)  # type: ignore[arg-type]
        for row in items.iter_rows(named=True)
    ]
    text = pl.Series("text", built, pl.String)
    return items.with_columns(pl.coalesce("text", text) if "text" in items.columns else text)


def to_arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, in its types."""
    return frame.select(schema.names).rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)
