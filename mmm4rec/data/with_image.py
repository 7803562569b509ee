"""A prepared domain cut down to its items with an image, as the paper's Table IV wants it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmm4rec.data.events import k_core_of, sizes_of
from mmm4rec.data.prepare import INTERACTIONS, ITEMS, USERS, Statistics, to_arrow
from mmm4rec.errors import UserError
from mmm4rec.features.store import read_features, write_features
from mmm4rec.io import write_parquet

logger = logging.getLogger(__name__)


def keep_items_with_image(settings: dict[str, Any], domain: Path, features: Path, out: Path) -> None:
    """Write the prepared domain ``out``, with ``features.parquet`` beside its other files.

    Events of items without an image go, and the k-core is taken again. Which items have one is what their features say:
    a dead link is no image, nor is a white picture in its place.

    Args:
        settings: what ``mmm4rec.config.with_image_settings`` gives.
        domain: the prepared domain.
        features: its features.
        out: folder of the smaller domain.

    Raises:
        UserError: no item has an image, or no event is left.
    """
    name, k = settings["domain"], settings["k_core"]
    given = read_features(features)
    if not given.has_image.any():
        raise UserError(f"{features}: no item of {name} has an image; a table of items with an image needs some")
    events = pl.read_parquet(domain / "interactions.parquet").rename({"user_id": "user", "item_id": "item"})
    statistics = Statistics(name)
    statistics.add("k_core", sizes_of(events))
    events = events.filter(pl.Series(given.has_image[events["item"].to_numpy() - 1]))
    statistics.add("with_image", sizes_of(events))
    events = k_core_of(events, k)
    statistics.add("k_core_with_image", sizes_of(events))
    if events.is_empty():
        raise UserError(
            f"{name}: no event is left after `k_core: {k}` of the items with an image; set a smaller `k_core`"
        )

    users, user_ids = np.unique(events["user"].to_numpy(), return_inverse=True)
    items, item_ids = np.unique(events["item"].to_numpy(), return_inverse=True)
    numbered = events.select(
        pl.Series("user_id", user_ids + 1, pl.Int32), pl.Series("item_id", item_ids + 1, pl.Int32), "timestamp"
    ).with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over("user_id").alias("position"))
    write_parquet(out / "interactions.parquet", to_arrow(numbered, INTERACTIONS))
    for file, ids, kept, schema in (("items", "item_id", items, ITEMS), ("users", "user_id", users, USERS)):
        table = pl.read_parquet(domain / f"{file}.parquet")[kept - 1]
        table = table.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias(ids))
        write_parquet(out / f"{file}.parquet", to_arrow(table, schema))
    statistics.write(out / "statistics.csv")

    rows = items - 1
    write_features(
        out / "features.parquet",
        np.arange(1, len(items) + 1, dtype=np.int32),
        given.items[rows],
        None if given.text is None else given.text[rows],
        given.has_text[rows],
        None if given.image is None else given.image[rows],
        given.has_image[rows],
        given.metadata,
    )
