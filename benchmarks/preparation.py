"""Preparation of a domain from raw files, against reading them with polars and against plain Python.

Ratings and metadata are invented. At full size there are as many ratings as Home and Kitchen has.
"""

import gzip
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread

import polars as pl
import psutil

from benchmarks.table import Row, apart, held, peak_bytes
from mmm4rec.data.events import InMemory
from mmm4rec.data.parse import read_ratings
from mmm4rec.data.prepare import prepare, renumber
from mmm4rec.planning.measure_steps import SETTINGS, invent_raw

SIZES = {"quick": (200_000,), "full": (2_000_000, 20_000_000)}
PLAIN = 2_000_000  # ratings up to which plain Python is waited for


def rows(size: str, device: str) -> Iterator[Row]:
    """Preparation at each size; ``device`` plays no part."""
    for n in SIZES[size]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            ratings, metadata = invent_raw(Path(folder), n)
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
