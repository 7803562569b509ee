"""A prepared domain as preparation writes it, from sequences of items."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write_domain(
    folder: Path,
    sequences: list[list[int]],
    times: list[list[int | None]] | None = None,
    brands: list[str | None] | None = None,
    categories: list[list[str] | None] | None = None,
) -> Path:
    """A prepared domain from item sequences (ids 1..N), one a user; brands and categories of the items 1..N."""
    folder.mkdir(parents=True)
    users = np.repeat(np.arange(1, len(sequences) + 1), [len(s) for s in sequences])
    position = np.concatenate([np.arange(len(s)) for s in sequences])
    items = np.concatenate(sequences)
    stamps = [t for row in times for t in row] if times else [None] * len(items)
    table = {
        "user_id": pa.array(users, pa.int32()),
        "item_id": pa.array(items, pa.int32()),
        "position": pa.array(position, pa.int32()),
        "timestamp": pa.array(stamps, pa.int64()),
    }
    pq.write_table(pa.table(table), folder / "interactions.parquet")
    n_items = int(items.max())
    table = {
        "item_id": pa.array(np.arange(1, n_items + 1), pa.int32()),
        "item": pa.array([f"item-{i}" for i in range(1, n_items + 1)]),
        "brand": pa.array(brands or [None] * n_items, pa.string()),
        "categories": pa.array(categories or [None] * n_items, pa.list_(pa.string())),
    }
    pq.write_table(pa.table(table), folder / "items.parquet")
    return folder
