"""Preparation of a domain from raw files, against reading them with polars and against plain Python.

Ratings and metadata are invented, in the formats of Amazon Reviews 2018: few users and items with many events, many
with few. At full size there are as many ratings as Home and Kitchen has.
"""

import gzip
import json
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread

import numpy as np
import polars as pl
import psutil

from benchmarks.table import Row, apart, held, peak_bytes
from mmm4rec.data.events import InMemory
from mmm4rec.data.parse import read_ratings
from mmm4rec.data.prepare import prepare, renumber

SIZES = {"quick": (200_000,), "full": (2_000_000, 20_000_000)}
EVENTS_A_USER, EVENTS_AN_ITEM = 2.25, 17.0  # as in Home and Kitchen before any filter
SKEW = 0.75  # exponent of the popularity over its rank
SETTINGS = {
    "domain": "invented",
    "amazon": "Invented",
    "edition": 2018,
    "k_core": 5,
    "text_fields": "title_category_brand",
}
WORDS = ("steel", "kitchen", "set", "with", "large", "cotton", "glass", "modern", "lamp", "white", "soft", "storage")
PLAIN = 2_000_000  # ratings up to which plain Python is waited for


def rows(size: str, device: str) -> Iterator[Row]:
    """Preparation at each size; ``device`` plays no part."""
    for n in SIZES[size]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            ratings, metadata = invent(Path(folder), n)
            read = apart(seconds_to_read, ratings, metadata)
            ours, memory = apart(cost_to_prepare, ratings, metadata, out)
            events = pl.scan_parquet(out / "interactions.parquet").select(pl.len()).collect().item()
            remark = f"{events} events stay"
            yield Row("ratings and metadata to a domain", n, "ratings", ours, "polars reads both", read, memory, remark)
            shutil.rmtree(out)
            parts, memory = apart(cost_to_prepare, ratings, metadata, out, memory_mb=n // 35_000)
            yield Row("the same in parts on disk", n, "ratings", parts, "all in memory", ours, memory)
            shutil.rmtree(out)
            if n <= PLAIN:
                plain, stay = apart(seconds_of_plain_python, ratings)
                (alone, kept), memory = apart(held, partial(seconds_to_filter, ratings), "cpu")
                assert stay == kept == events, (stay, kept, events)
                yield Row("ratings to sequences of the 5-core", n, "ratings", alone, "plain Python", plain, memory)


def invent(folder: Path, n: int) -> tuple[Path, Path]:
    """Write ``n`` ratings and the metadata of their items; the paths of both."""
    draw = np.random.default_rng(0)
    n_users, n_items = int(n / EVENTS_A_USER), int(n / EVENTS_AN_ITEM)
    users, items = (_skewed(count, n, draw) for count in (n_users, n_items))
    events = pl.DataFrame({"item": items, "user": users}).select(
        ("B" + pl.col("item").cast(pl.String).str.zfill(9)).alias("item"),
        ("A" + pl.col("user").cast(pl.String).str.zfill(13)).alias("user"),
        pl.Series("rating", draw.integers(1, 6, n).astype(np.float32)),
        pl.Series("timestamp", 1_300_000_000 + 86_400 * draw.integers(0, 2500, n)),
    )
    ratings, metadata = folder / "Invented.csv", folder / "meta_Invented.json.gz"
    events.write_csv(ratings, include_header=False)
    with gzip.open(metadata, "wt", compresslevel=1, encoding="utf-8") as file:
        for item in range(n_items):
            words = [WORDS[k] for k in draw.integers(0, len(WORDS), 80)]
            record = {
                "category": ["Home & Kitchen", " ".join(words[:2]), " ".join(words[2:4])],
                "description": [" ".join(words[10:])],
                "title": " ".join(words[:9]),
                "brand": words[9],
                "also_buy": [f"B{k:09d}" for k in range(item, item + 20)],
                "imageURLHighRes": [f"https://images.example.org/I/{item}.jpg"],
                "asin": f"B{item:09d}",
            }
            file.write(json.dumps(record) + "\n")
    return ratings, metadata


def _skewed(count: int, n: int, draw: np.random.Generator) -> np.ndarray:
    """``n`` draws out of 0..count - 1, the k-th as likely as (k + 10) ** -SKEW."""
    weights = (np.arange(count) + 10.0) ** -SKEW
    order = draw.permutation(count)
    return order[np.searchsorted(np.cumsum(weights) / weights.sum(), draw.random(n), side="right").clip(max=count - 1)]


def seconds_to_read(ratings: Path, metadata: Path) -> float:
    """What polars takes to read both files, all columns of the one, the key and the fields used of the other."""
    start = time.perf_counter()
    pl.read_csv(ratings, has_header=False, new_columns=["item", "user", "rating", "timestamp"])
    texts = {"asin": pl.String, "title": pl.String, "brand": pl.String}
    lists = dict.fromkeys(("category", "description", "imageURLHighRes"), pl.List(pl.String))
    pl.read_ndjson(gzip.decompress(metadata.read_bytes()), schema={**texts, **lists})
    return time.perf_counter() - start


def cost_to_prepare(ratings: Path, metadata: Path, out: Path, memory_mb: int = 8000) -> tuple[float, float]:
    """Seconds of preparation, and MiB that it and the processes which it starts hold together."""
    start = time.perf_counter()
    with watched() as together:
        prepare(SETTINGS, out, ratings=ratings, metadata=metadata, memory_mb=memory_mb)
    return time.perf_counter() - start, max(peak_bytes("cpu"), *together) / 2**20


@contextmanager
def watched() -> Iterator[list[int]]:
    """Bytes that this process and those it started hold at a time, ten times a second; what they share counts once."""
    this, found, over = psutil.Process(), [0], Event()

    def look() -> None:
        while not over.wait(0.1):
            with suppress(psutil.Error):  # one has just ended
                own = [process.memory_full_info().uss for process in this.children(recursive=True)]
                found.append(this.memory_info().rss + sum(own))

    watch = Thread(target=look)
    watch.start()
    try:
        yield found
    finally:
        over.set()
        watch.join()


def seconds_to_filter(ratings: Path) -> tuple[float, int]:
    """What preparation takes from ratings to sequences in memory, and the events that stay."""
    start = time.perf_counter()
    raw = InMemory(read_ratings(ratings, 2018))
    raw.deduplicate()
    core = raw.k_core(5)
    _, _, events = renumber(core.events, core.users, core.items)
    return time.perf_counter() - start, len(events)


def seconds_of_plain_python(ratings: Path) -> tuple[float, int]:
    """The same in plain Python as is usual in the field: lists, dictionaries, counts, line by line."""
    start = time.perf_counter()
    seen, events = set(), []
    with ratings.open() as file:
        for line in file:
            item, user, rating, stamp = line.rstrip("\n").split(",")
            event = (user, item, float(rating), int(stamp))
            if event not in seen:
                seen.add(event)
                events.append(event)
    while True:
        users, items = Counter(e[0] for e in events), Counter(e[1] for e in events)
        kept = [e for e in events if users[e[0]] >= 5 and items[e[1]] >= 5]
        if len(kept) == len(events):
            break
        events = kept
    sequences = defaultdict(list)
    for user, item, _rating, time_ in events:
        sequences[user].append((time_, item))
    ids: dict[str, int] = {}
    for sequence in sequences.values():
        sequence.sort(key=lambda pair: pair[0])
        for _, name in sequence:
            ids.setdefault(name, len(ids) + 1)
    return time.perf_counter() - start, len(events)
