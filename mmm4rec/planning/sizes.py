"""How large a domain is: counted where it is prepared, else as the paper prints it, else unknown."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmm4rec.config import WITH_IMAGE, Config, features_path, paper_domain
from mmm4rec.reporting.table1 import published_sizes

MIN_RANKED_EVENTS = 3  # a history, a validation item and a test item; mmm4rec.training.data needs torch


@dataclass(frozen=True)
class Size:
    """Size of a domain, or of several together.

    Attributes:
        users: that are ranked.
        items: of the catalogue.
        images: items with an image.
        rows: training rows of fine-tuning.
        all_rows: training rows of pre-training.
        origin: ``prepared``, ``print``, or ``... at most``.
    """

    users: int
    items: int
    images: int
    rows: int
    all_rows: int
    origin: str


def domain_size(config: Config, domain: str) -> Size | None:
    """Size of a domain; None where nobody knows yet.

    A domain of Table IV that is not prepared has at most the size of the whole one.
    """
    folder = config.results / "domains" / domain
    if (folder / "interactions.parquet").exists() and (folder / "items.parquet").exists():
        return _counted(config, domain, folder)
    if domain.endswith(WITH_IMAGE):
        whole = domain_size(config, domain.removesuffix(WITH_IMAGE))
        return whole and Size(whole.users, whole.items, whole.images, whole.rows, whole.all_rows, "whole, at most")
    return _printed(config, domain)


def union_size(sizes: Iterable[Size | None]) -> Size | None:
    """Size of several domains merged; None if one is unknown."""
    known: list[Size] = []
    for size in sizes:
        if size is None:
            return None
        known.append(size)
    origin = " and ".join(sorted({size.origin for size in known}))
    names = ("users", "items", "images", "rows", "all_rows")
    return Size(**{name: sum(getattr(size, name) for size in known) for name in names}, origin=origin)


def _counted(config: Config, domain: str, folder: Path) -> Size:
    users = pq.read_table(folder / "interactions.parquet", columns=["user_id"])["user_id"].to_numpy()
    lengths = np.unique(users, return_counts=True)[1]
    ranked = lengths >= MIN_RANKED_EVENTS
    all_rows = int((lengths - 1).sum())
    items = pq.read_metadata(folder / "items.parquet").num_rows
    return Size(
        int(ranked.sum()),
        items,
        _images(config, domain, folder),
        all_rows - 2 * int(ranked.sum()),
        all_rows,
        "prepared",
    )


def _images(config: Config, domain: str, folder: Path) -> int:
    """Items with an image: what the features say, or the pictures, or (at most) the items' addresses."""
    features, manifest = features_path(config, domain), config.results / "images" / domain / "manifest.parquet"
    if features.exists():
        return pc.sum(pq.read_table(features, columns=["has_image"])["has_image"]).as_py() or 0
    if manifest.exists():
        return pc.sum(pq.read_table(manifest, columns=["shard"])["shard"].is_valid()).as_py() or 0
    if "image" not in pq.read_schema(folder / "items.parquet").names:
        return 0
    return pc.sum(pq.read_table(folder / "items.parquet", columns=["image"])["image"].is_valid()).as_py() or 0


def _printed(config: Config, domain: str) -> Size | None:
    name = paper_domain(config, domain)
    size = published_sizes(name) if name else None
    if size is None:
        return None
    users, events = size["users"], size["interactions"]
    return Size(users, size["items"], size["images"], events - 3 * users, events - users, "print")
