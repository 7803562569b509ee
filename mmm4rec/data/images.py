"""Fetch the pictures of a domain: politely, resumably, and never failing for a dead link.

Everything that is known of a picture stands in one row of a shard, failures included: a killed run goes on from its
shards, and the manifest is the shards without their pictures.
"""

import hashlib
import io
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import requests
import urllib3
from PIL import Image
from requests.adapters import HTTPAdapter
from rich.progress import Progress

from mmm4rec import __version__
from mmm4rec.errors import UserError
from mmm4rec.io import write_parquet

logger = logging.getLogger(__name__)

SHARD = 1000  # rows
MAX_BYTES = 64 << 20  # of a download
MAX_PIXELS = 64_000_000  # of a picture, so that a small file cannot unpack into all of the memory
MAX_WAIT = 60  # seconds that a server's Retry-After may hold a thread
QUALITY = 95  # of pictures that have to be encoded again
# not all that Pillow can open: some start other programs
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
RETRIED = (408, 425, 429, 500, 502, 503, 504)
#: what may go better another time; everything else is final
TRANSIENT = ("timeout", "unreachable", "offline", "no such file", *(f"http {code}" for code in RETRIED))

#: addresses that are requested; all others are of files on disk
REMOTE = pl.col("url").str.contains(r"(?i)^https?://")

SCHEMA = pa.schema(
    [
        ("item_id", pa.int32()),
        ("item", pa.string()),
        ("url", pa.string()),
        ("status", pa.string()),
        ("tries", pa.int32()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("image", pa.binary()),
    ]
)
FACTS = [name for name in SCHEMA.names if name != "image"]


def fetch_images(
    items: Path, out: Path, *, concurrency: int, timeout: float, tries: int, max_side: int, offline: bool
) -> None:
    """Write ``shard_*.parquet`` and, at the end, ``manifest.parquet`` (docs/architecture.md) to ``out``.

    Pictures in finished shards and final failures (not found, not a picture) are kept; everything else is fetched. They
    are known by raw id and address, so that they stay when the items are numbered anew.

    Args:
        items: items.parquet of a prepared domain; ``image`` is a URL, a path (relative to the current folder), or null.
        out: folder of the pictures.
        concurrency: requests under way at once, and connections to one host.
        timeout: seconds to connect, between two packets, and for the body.
        tries: requests for one picture, with growing pauses between them.
        max_side: larger pictures are scaled down to so many pixels.
        offline: no request at all; pictures on disk are read.

    Raises:
        UserError: ``items`` is no items.parquet, or no server at all could be reached.
    """
    out = Path(out)
    (out / "manifest.parquet").unlink(missing_ok=True)
    n_items, wanted = _wanted(Path(items))
    done = _resume(out, wanted, max_side)
    todo = wanted.filter(~pl.col("item_id").is_in(done.implode()))
    number = max((_number(path) for path in list_shards(out)), default=-1) + 1
    fetch = _Fetcher(_session(concurrency, tries), tries, timeout, max_side, offline)
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal rows, number
        if rows:
            table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["item_id"]), SCHEMA)
            write_parquet(out / f"shard_{number:05d}.parquet", table, {"max_side": str(max_side)})
            rows, number = [], number + 1

    with Progress(disable=not sys.stderr.isatty(), transient=True) as progress, ThreadPoolExecutor(concurrency) as pool:
        task = progress.add_task("pictures", total=len(wanted), completed=len(done))
        try:
            for row in _as_they_come(pool, fetch, todo.iter_rows(named=True), 4 * concurrency):
                rows.append(row)
                progress.advance(task)
                if len(rows) == SHARD:
                    flush()
        finally:
            flush()
    manifest = _manifest(out)
    _check_network(out, manifest)
    write_parquet(out / "manifest.parquet", manifest)
    counts = pl.Series(manifest["status"].to_pylist(), dtype=pl.String).value_counts(sort=True)
    _warn_of_lost(out, manifest)
    there = (manifest["shard"].is_valid().to_numpy()).sum()
    logger.info(
        "%s: %d of %d items have a picture (%.2f %%); %d have no address; %s",
        out,
        there,
        n_items,
        100 * there / max(n_items, 1),
        n_items - len(wanted),
        ", ".join(f"{status}: {n}" for status, n in counts.iter_rows()) or "nothing to fetch",
    )


def list_shards(folder: Path) -> list[Path]:
    """The shards of a folder, in order."""
    return sorted(Path(folder).glob("shard_*.parquet"), key=_number)


def read_shard(path: Path, column: Literal["item_id", "image"]) -> list[Any]:
    """Item ids, or JPEG bytes, of a shard's pictures."""
    table = pq.read_table(path, columns=[column, "sha256"])
    return table[column].filter(table["sha256"].is_valid()).to_pylist()  # failures have no sum


def read_images(folder: Path) -> Iterator[tuple[int, bytes]]:
    """Item id and JPEG bytes of every picture, in the order of the shards.

    Raises:
        UserError: the pictures of this folder were not fetched, or not to the end.
    """
    check_complete(folder)
    for path in list_shards(folder):
        yield from zip(read_shard(path, "item_id"), read_shard(path, "image"), strict=True)


def check_complete(folder: Path) -> None:
    """Check that fetching has come to its end, and that what was fetched is there.

    Raises:
        UserError: it has not, or is not.
    """
    manifest = Path(folder) / "manifest.parquet"
    if not manifest.exists():
        raise UserError(f"{folder}: no manifest.parquet; fetch the pictures to the end with `mmm4rec images` first")
    shards = set(pq.read_table(manifest, columns=["shard"])["shard"].drop_null().to_pylist())
    if gone := sorted(shards - set(map(_number, list_shards(folder)))):
        raise UserError(f"{folder}: shard_{gone[0]:05d}.parquet is gone; run `mmm4rec images` again")


# ------------------------------------------------------------------------------------------------ tables


def _number(shard: Path) -> int:
    return int(shard.stem.removeprefix("shard_"))


def _wanted(items: Path) -> tuple[int, pl.DataFrame]:
    """How many items there are, and item_id, item, url of those that have an image entry."""
    try:
        table = pl.read_parquet(items, columns=["item_id", "item", "image"])
    except (FileNotFoundError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{items}: not the items of a prepared domain: {error}") from None
    url = pl.col("image").cast(pl.String).str.strip_chars().alias("url")
    return len(table), table.select("item_id", "item", url).filter(pl.col("url").str.len_bytes() > 0)


def _resume(out: Path, wanted: pl.DataFrame, max_side: int) -> pl.Series:
    """Ids of the items that need no request. Shards keep nothing else, and take over new ids."""
    done = [pl.Series("now", [], dtype=pl.Int32)]
    for path in list_shards(out):
        known = pl.read_parquet(path, columns=["item_id", "item", "url", "status"])
        now = wanted.select("item", "url", now="item_id")
        known = known.join(now, on=["item", "url"], how="left", maintain_order="left")
        same_size = pq.read_schema(path).metadata[b"max_side"] == str(max_side).encode()
        # files on disk may have changed, and are quickly read
        final = ~pl.col("status").is_in(TRANSIENT) & pl.lit(same_size) & REMOTE
        keep = known.select(pl.col("now").is_not_null() & final).to_series()
        if not keep.any():
            path.unlink()
        elif not keep.all() or not (known["now"] == known["item_id"]).all():
            table = pq.read_table(path)
            ids = pa.array(known["now"].to_list(), pa.int32())
            write_parquet(path, table.set_column(0, SCHEMA.field("item_id"), ids).filter(pa.array(keep.to_list())))
        done.append(known.filter(keep)["now"])
    return pl.concat(done)


def _manifest(out: Path) -> pa.Table:
    """All rows of all shards without their pictures, by item; ``shard`` and ``row`` say where a picture lies."""
    place = {"shard": pa.int32(), "row": pa.int32()}
    empty = pa.schema([*(SCHEMA.field(name) for name in FACTS), *place.items()]).empty_table()
    parts = [empty]
    for path in list_shards(out):
        table = pq.read_table(path, columns=FACTS).replace_schema_metadata(None)
        failed = table["sha256"].is_null().to_numpy()
        for name, values in (("shard", [_number(path)] * len(table)), ("row", range(len(table)))):
            table = table.append_column(name, pa.array(values, place[name], mask=failed))
        parts.append(table)
    return pa.concat_tables(parts).sort_by("item_id")


def _check_network(out: Path, manifest: pa.Table) -> None:
    """Raise a ``UserError`` where there were requests and none had an answer: a network that is down is no result."""
    asked = pl.DataFrame(manifest.select(["url", "status"])).filter(REMOTE)["status"]
    if len(asked) and asked.is_in(["unreachable", "timeout"]).all():
        raise UserError(
            f"{out}: no answer to any of {len(asked)} requests; is there a network? The same command tries again; "
            "`offline: true` goes on without these pictures"
        )


def _warn_of_lost(out: Path, manifest: pa.Table) -> None:
    """Log a warning if pictures are to come from files that are not there."""
    lost = pl.DataFrame(manifest.select(["url", "status"])).filter(pl.col("status") == "no such file")["url"]
    if len(lost):
        logger.warning(
            "%s: pictures whose file is not there: %d, the first %s; relative paths start in the folder where the "
            "command runs (%s), URLs with https://",
            *(out, len(lost), lost[0], Path.cwd()),
        )


def _as_they_come(
    pool: ThreadPoolExecutor, work: Callable[[Any], Any], values: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """Results as they come; never more than ``ahead`` are begun, so that memory stays small."""
    under_way: set[Future[Any]] = set()
    for value in values:
        if len(under_way) >= ahead:
            finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
        under_way.add(pool.submit(work, value))
    yield from (future.result() for future in under_way)


# ------------------------------------------------------------------------------------------------ one picture


class _NoPictureError(Exception):
    """There is no picture: the status says why."""

    def __init__(self, status: str, tries: int | None = None) -> None:
        super().__init__(status)
        self.status, self.tries = status, tries


class _Retry(urllib3.Retry):
    """Pauses as long as the server asks for, within bounds."""

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        seconds = super().get_retry_after(response)
        return seconds and min(seconds, MAX_WAIT)


def _session(concurrency: int, tries: int) -> requests.Session:
    retry = _Retry(
        total=tries - 1, status_forcelist=RETRIED, backoff_factor=0.5, backoff_jitter=0.5, raise_on_status=False
    )
    # pool_block: no host ever sees more connections than that
    adapter = HTTPAdapter(pool_connections=concurrency, pool_maxsize=concurrency, pool_block=True, max_retries=retry)
    session = requests.Session()
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    session.headers["User-Agent"] = f"mmm4rec/{__version__} (research)"
    return session


@dataclass(frozen=True)
class _Fetcher:
    """Turns a row of ``_wanted`` into a row of a shard."""

    session: requests.Session
    tries: int
    timeout: float
    max_side: int
    offline: bool

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        tries = 0
        try:
            data, tries = self._load(row["url"])
            image = to_jpeg(data, self.max_side)
        except _NoPictureError as failure:
            return {**row, "status": failure.status, "tries": tries if failure.tries is None else failure.tries}
        sha256 = hashlib.sha256(image).hexdigest()
        return {**row, "status": "ok", "tries": tries, "bytes": len(image), "sha256": sha256, "image": image}

    def _load(self, url: str) -> tuple[bytes, int]:
        try:
            scheme, _, path, _, _ = urlsplit(url)
            if scheme not in ("http", "https"):
                return Path(url2pathname(path) if scheme == "file" else url).read_bytes(), 1
        except OSError:
            raise _NoPictureError("no such file", 1) from None
        except ValueError:
            raise _NoPictureError("bad address", 0) from None
        if self.offline:
            raise _NoPictureError("offline", 0)
        return self._get(url)

    def _get(self, url: str) -> tuple[bytes, int]:
        try:
            with self.session.get(url, timeout=self.timeout, stream=True) as response:
                tries = 1 + len(response.raw.retries.history)  # type: ignore[union-attr]
                if response.status_code != requests.codes.ok:
                    raise _NoPictureError(f"http {response.status_code}", tries)
                data, deadline = bytearray(), time.monotonic() + self.timeout
                for chunk in response.iter_content(1 << 16):
                    data += chunk
                    if len(data) > MAX_BYTES:
                        raise _NoPictureError("too large", tries)
                    if time.monotonic() > deadline:
                        raise _NoPictureError("timeout", tries)
                return bytes(data), tries
        except requests.TooManyRedirects:
            raise _NoPictureError("too many redirects", 1) from None
        except (requests.exceptions.InvalidURL, urllib3.exceptions.LocationParseError):
            raise _NoPictureError("bad address", 0) from None
        except requests.RequestException as error:
            # after several tries requests reports a timeout as a lost connection
            late = isinstance(error, requests.Timeout) or "timed out" in str(error)
            raise _NoPictureError("timeout" if late else "unreachable", self.tries) from None


def to_jpeg(data: bytes, max_side: int) -> bytes:
    """A whole RGB picture of at most ``max_side`` pixels a side, as JPEG; a JPEG that is such already stays as it is.

    Raises:
        _NoPictureError: the bytes are no picture, not all of one, or one of far too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _NoPictureError("too large")
            image.load()
            if image.format == "JPEG" and image.mode == "RGB" and max(image.size) <= max_side:
                return data
            if image.mode in ("I", "F") or image.mode.startswith("I;"):  # more than 8 bits a channel
                rgb = _eight_bits(image).convert("RGB")
            elif image.has_transparency_data:
                rgba = image.convert("RGBA")
                rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
            else:
                rgb = image.convert("RGB")
    except Image.DecompressionBombError:
        raise _NoPictureError("too large") from None
    except _NoPictureError:
        raise
    except Exception:  # Pillow's decoders raise all sorts of exceptions on broken files
        raise _NoPictureError("not an image") from None
    rgb.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits a channel; conversion to RGB would cut them off at 255, which is white.

    Raises:
        _NoPictureError: it has numbers whose range nobody knows.
    """
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() >= 2**16:
        raise _NoPictureError("not an image")
    return Image.fromarray((values >> 8).astype(np.uint8))
