"""Readers of raw files: ratings and metadata of Amazon Reviews, and a user's own interactions and items.

Events have the columns ``user``, ``item``, and of ``rating``, ``timestamp`` (unix seconds) and ``position`` those that
exist, in the order of the file. Items: ``item`` (string) and the cleaned fields of ``mmm4rec.data.text.Fields``.
"""

import errno
import gzip
import logging
import re
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import orjson
import polars as pl
import pyarrow as pa

from mmm4rec.data import text
from mmm4rec.data.registry import Edition
from mmm4rec.errors import UserError
from mmm4rec.reading import is_it

logger = logging.getLogger(__name__)

ITEM_SCHEMA = pa.schema(
    [
        ("item", pa.string()),
        ("title", pa.string()),
        ("brand", pa.string()),
        ("categories", pa.list_(pa.string())),
        ("description", pa.string()),
        ("image", pa.string()),
    ]
)
SEPARATORS = {".csv": ",", ".tsv": "\t"}
OWN_ITEM_COLUMNS = ("title", "brand", "categories", "description", "text", "image")
HEADER_2023 = b"user_id,parent_asin,rating,timestamp"
BLOCK = 2**25  # bytes of metadata that are read at a time
LATEST = 10**11  # seconds: the year 5138; a larger timestamp is in milliseconds

T = TypeVar("T")


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn the errors of a missing, truncated or damaged file into one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (EOFError, zlib.error, OSError) as error:
        if _is_full(error):
            raise
        raise UserError(f"{path}: truncated or damaged ({error}); remove it and fetch it again") from None


def _is_full(error: Exception) -> bool:
    """Whether there was no room to write, which is no fault of the file that is read."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in full or any(f"(os error {n})" in str(error) for n in full)


def _open(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed if its content (not its name) is gzip."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb") if packed else path.open("rb"))


# ------------------------------------------------------------------------------------------------ Amazon Reviews


@dataclass(frozen=True)
class RawEvents:
    """A file of events that is yet to be read, as a whole or in parts.

    Args:
        path: the file.
        rows: its rows as they stand there.
        user: their column that names the user.
        checked: turns some of them into events. A column ``row``, the number of each, stays if they have it.
        problem: the sentence to say if polars cannot read the file, given what polars says.
    """

    path: Path
    rows: pl.LazyFrame
    user: str
    checked: Callable[[pl.DataFrame], pl.DataFrame]
    problem: Callable[[str], str]

    def count(self) -> int:
        """How many rows there are."""
        with self.errors():
            return int(self.rows.select(pl.len()).collect(engine="streaming").item())

    def whole(self) -> pl.DataFrame:
        """All events.

        Raises:
            UserError: the file is missing or truncated, or a line or row (named) is not as it should be.
        """
        with self.errors():
            return self.checked(self.rows.collect())

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what may go wrong while the file is read into one sentence."""
        with _whole(self.path):
            try:
                yield
            except pl.exceptions.PolarsError as error:
                if _is_full(error):
                    raise
                raise UserError(self.problem(str(error).splitlines()[0])) from None


def read_ratings(path: Path, edition: Edition) -> RawEvents:
    """Read a ratings file: ``user``, ``item``, ``rating``, ``timestamp`` (unix seconds), in the file's order.

    2018 has no header and the columns item, user, rating, seconds; 2023 has a header and the columns user_id,
    parent_asin, rating, milliseconds.

    Raises:
        UserError: the file is missing, or has not the header of its edition.
    """
    header, unit = (1, 1000) if edition == 2023 else (0, 1)  # lines; of a timestamp in a second
    columns = ("user", "item") if header else ("item", "user")
    schema = {**dict.fromkeys(columns, pl.String), "rating": pl.Float32, "timestamp": pl.Int64}
    with _whole(path), _open(path) as lines:
        first = lines.readline().strip() if header else HEADER_2023
    if first != HEADER_2023:
        raise UserError(f"{path}, line 1: expected {HEADER_2023.decode()}, found {first[:80]!r}")

    def problem(_: str = "") -> str:
        return _broken_rating(path, list(schema), header, unit)

    def checked(frame: pl.DataFrame) -> pl.DataFrame:
        frame = frame.with_columns(pl.col("timestamp") // unit)
        if frame.null_count().sum_horizontal().item() > 0 or (frame["timestamp"] > LATEST).any():
            raise UserError(problem())
        return frame.select("user", "item", "rating", "timestamp", *_row(frame))

    rows = pl.scan_csv(path, glob=False, has_header=False, skip_rows=header, schema=schema, quote_char=None)
    return RawEvents(path, rows, "user", checked, problem)


def _broken_rating(path: Path, columns: list[str], header: int, unit: int) -> str:
    """Say which line of a ratings file is broken, and how; read again line by line, as polars does not tell."""
    seconds = "seconds" if unit == 1 else "milliseconds"
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if number <= header:
                continue
            try:
                cells = line.decode("utf-8").rstrip("\r\n").split(",")
                if len(cells) != len(columns) or not all(cells):
                    raise ValueError
                float(cells[2])
                if int(cells[3]) // unit > LATEST:
                    raise ValueError
            except ValueError:
                expected = f"expected {','.join(columns)} with a number as rating and unix {seconds} as timestamp"
                return (
                    f"{path}, line {number}: {expected}, found {line[:200]!r}; correct the line or fetch the file again"
                )
    return f"{path}: not a ratings file of Amazon Reviews; fetch it again"


def read_metadata(path: Path, edition: Edition, wanted: Collection[str]) -> tuple[set[str], pl.DataFrame]:
    """Read a metadata file: the ids of all its items, and the cleaned fields of the wanted ones.

    An item on several lines is the first of them that has a usable title, else the first. Only what is wanted is kept
    in memory.

    Raises:
        UserError: the file is missing or truncated, or a line (named) is not JSON or has no item id.
    """
    read = partial(_read_records, path, edition)
    present: set[str] = set()
    parts: list[pl.DataFrame] = []
    with _whole(path), _open(path) as file:
        for items, described in _in_processes(read, _blocks(file), wanted):
            present.update(items)
            parts.append(described)
    found = pl.concat(parts) if parts else _Columns().frame()
    titled = found.filter(pl.col("title").is_not_null())
    return present, pl.concat([titled, found]).unique("item", keep="first", maintain_order=True)


def _blocks(file: BinaryIO) -> Iterator[tuple[int, list[bytes]]]:
    """Lines of a file, many at a time, and the number of the first of them."""
    number = 1
    while lines := file.readlines(BLOCK):
        yield number, lines
        number += len(lines)


def _in_processes(
    read: Callable[..., T], blocks: Iterator[tuple[int, list[bytes]]], wanted: Collection[str]
) -> Iterator[T]:
    """``read`` of each block and what is wanted, in order; of several in as many processes as polars has threads."""
    first, second = next(blocks, None), next(blocks, None)
    if first is None:
        return
    if second is None:
        yield read(*first, wanted)
        return
    n = pl.thread_pool_size()  # the cores this process may use, unless POLARS_MAX_THREADS says otherwise
    with tempfile.NamedTemporaryFile("wb") as file:  # a process that ends early would leave a large argument unread
        file.write(orjson.dumps(list(wanted)))
        file.flush()
        with ProcessPoolExecutor(n, get_context("spawn"), initializer=_want, initargs=(file.name,)) as pool:
            waiting: deque[Future[T]] = deque()
            for block in chain([first, second], blocks):
                waiting.append(pool.submit(read, *block))
                if len(waiting) > 2 * n:
                    yield waiting.popleft().result()
            for future in waiting:
                yield future.result()


_wanted: Collection[str] = ()  # what a process is told once


def _want(path: str) -> None:
    global _wanted
    _wanted = frozenset(orjson.loads(Path(path).read_bytes()))


def _read_records(
    path: Path, edition: Edition, number: int, lines: list[bytes], wanted: Collection[str] | None = None
) -> tuple[list[str], pl.DataFrame]:
    """All items that lines of a metadata file name, and the fields of those wanted."""
    key, fields_of = ("asin", text.fields_2018) if edition == 2018 else ("parent_asin", text.fields_2023)
    wanted = _wanted if wanted is None else wanted
    present, columns = [], _Columns()
    for at, line in enumerate(lines, start=number):
        if line.isspace():
            continue
        try:
            record = orjson.loads(line)
            item = str(record[key])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}, line {at}: expected a JSON object with {key!r}, found {line[:80]!r}; "
                "remove the line or fetch the file again"
            ) from None
        present.append(item)
        if item in wanted:
            columns.add(item, fields_of(record))
    return present, columns.frame()


class _Columns:
    """Items and their fields, made columns by way of Arrow, which takes lists of strings far faster than polars."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def add(self, item: str, fields: text.Fields) -> None:
        self.rows.append((item, *fields.values()))

    def frame(self) -> pl.DataFrame:
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(ITEM_SCHEMA)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, ITEM_SCHEMA, strict=True)]
        return pl.DataFrame(pa.Table.from_arrays(arrays, schema=ITEM_SCHEMA))


# ------------------------------------------------------------------------------------------------ own files


def read_interactions(path: Path) -> RawEvents:
    """Read a user's own events: ``user_id``, ``item_id``, ``timestamp`` or ``position`` or both, ``rating`` optional.

    The file is .parquet, .csv or .tsv. Ids are integers or strings; ids of a text file are integers if all of them are
    written as integers. Timestamps are unix seconds since 1970, or dates and times of a Parquet file. They may be
    missing in places if there is a position. The log warns of columns that nothing reads.

    Returns:
        ``user`` and ``item`` (Int64 or String), and those of ``rating`` (Float32), ``timestamp`` (Int64) and
        ``position`` (Int64) that the file has, in the file's order.

    Raises:
        UserError: the file or a column is missing, or (from ``RawEvents``) a cell is not as it should be.
    """
    rows = _scan_table(path, ("user_id", "item_id"), ("rating", "timestamp", "position"))
    columns = rows.collect_schema().names()
    if not {"timestamp", "position"} & set(columns):
        raise UserError(f"{path}: there is neither a column `timestamp` nor a column `position`; add one of them")
    order = "position" if "position" in columns else "timestamp"
    are_integers = cache(lambda: _are_integers(path, rows.select("user_id", "item_id")))

    def checked(frame: pl.DataFrame) -> pl.DataFrame:
        for column in ("user_id", "item_id", order):
            _check_row(frame, _is_empty(frame[column]), path, column, "empty")
        frame = frame.with_columns(
            *(_ids(frame[f"{name}_id"], path, are_integers()[f"{name}_id"]).alias(name) for name in ("user", "item")),
            *(_integers(frame, name, path) for name in ("timestamp", "position") if name in columns),
            *(_numbers(frame, "rating", path).cast(pl.Float32) for _ in range("rating" in columns)),
        )
        _check_seconds(frame, path)
        return frame.select("user", "item", *columns[2:], *_row(frame))

    return RawEvents(path, rows, "user_id", checked, partial(_not_a_table, path))


def read_items(path: Path) -> pl.DataFrame:
    """Read a user's own items: ``item_id`` and any of title, brand, categories, description, text, image.

    The file is .parquet, .csv or .tsv. Categories may be a list or a string. The log warns of columns that nothing
    reads.

    Returns:
        ``item`` (string), the cleaned fields, and ``text`` as given (null where there is none).

    Raises:
        UserError: the column ``item_id`` is missing or empty in a row, it is the only one, or an item stands twice.
    """
    rows = _scan_table(path, ("item_id",), OWN_ITEM_COLUMNS)
    if rows.collect_schema().names() == ["item_id"]:
        raise UserError(
            f"{path}: no column says anything of the items; name one of them {', '.join(OWN_ITEM_COLUMNS[:-1])} or "
            f"{OWN_ITEM_COLUMNS[-1]}, or leave `items` out of the domain"
        )
    with _whole(path):
        try:
            frame = rows.collect()
        except pl.exceptions.PolarsError as error:
            raise UserError(_not_a_table(path, str(error).splitlines()[0])) from None
    _check_row(frame, _is_empty(frame["item_id"]), path, "item_id", "empty")
    for name in frame.columns[1:]:
        dtype = frame[name].dtype
        inner = dtype.inner if isinstance(dtype, pl.List) and name != "text" else dtype
        if inner not in (pl.String, pl.Categorical, pl.Enum, pl.Null):
            raise UserError(f"{path}: `{name}` holds {dtype}; expected strings{' or lists of them' * (name != 'text')}")
    items = _ids(frame["item_id"], path, is_integer=False).cast(pl.String)
    _check_row(frame, ~items.is_first_distinct(), path, "item_id", "an item that stands above already")
    columns = _Columns()
    for item, row in zip(items, frame.iter_rows(named=True), strict=True):
        columns.add(item, text.fields_own(row))
    cleaned = columns.frame()
    own = frame["text"].cast(pl.String).str.strip_chars() if "text" in frame.columns else pl.lit(None, pl.String)
    return cleaned.with_columns(pl.when(own != "").then(own).alias("text"))


def warn_of_unread(path: Path, columns: Sequence[str], known: Collection[str]) -> None:
    """Log a warning that names the columns of a file beside the ``known`` ones, and which of those may be meant."""
    lacking = [name for name in known if name not in columns]
    unread = [(name, is_it(name.lower(), lacking)) for name in columns if name not in known]
    if unread:
        told = ", ".join(f"{name} ({question})" if question else name for name, question in unread)
        logger.warning("%s: columns that nothing reads: %s", path, told)


def _scan_table(path: Path, required: Sequence[str], optional: Sequence[str]) -> pl.LazyFrame:
    """Some columns of a table; cells of text files stay strings, so that no id loses its leading zeros."""
    if path.suffix not in (".parquet", *SEPARATORS):
        raise UserError(f"{path}: expected a file that ends in .parquet, .csv or .tsv")
    with _whole(path):
        try:
            if path.suffix == ".parquet":
                rows = pl.scan_parquet(path, glob=False)
            else:
                rows = pl.scan_csv(path, glob=False, separator=SEPARATORS[path.suffix], infer_schema=False)
            columns = rows.collect_schema().names()
            if path.suffix == ".tsv":
                _warn_of_swallowed(path, rows)
        except pl.exceptions.PolarsError as error:
            raise UserError(_not_a_table(path, str(error).splitlines()[0])) from None
    if any("\ufffd" in name for name in columns):  # what polars makes of bytes of another encoding in a header
        raise UserError(f"{path}, line 1: not UTF-8; save the file as UTF-8")
    for name in required:
        if name not in columns:
            hint = " (.csv has commas between columns, .tsv tabs)" if len(columns) == 1 else ""
            raise UserError(f"{path}: there is no column `{name}`; found {', '.join(columns)}{hint}")
    warn_of_unread(path, columns, (*required, *optional))
    return rows.select(*required, *(name for name in columns if name in optional))


def _warn_of_swallowed(path: Path, rows: pl.LazyFrame) -> None:
    """Log a warning if a cell holds tab and line break: where quotes mean nothing, such a cell is several rows."""
    holds = [pl.all().str.contains(character, literal=True) for character in "\t\n"]
    at = rows.select(pl.arg_where(pl.any_horizontal(holds[0] & holds[1]))).collect(engine="streaming").to_series()
    if len(at):
        logger.warning(
            "%s, row %d below the header: a cell holds tab and line break (such rows: %d); if rows are lost in it, put "
            "cells that hold quotes in double quotes and double those inside",
            *(path, at[0] + 1, len(at)),
        )


def _not_a_table(path: Path, error: str) -> str:
    """Say why a table cannot be read; of text files the line too, read again, as polars does not tell."""
    broken = _broken_line(path) if path.suffix in SEPARATORS else None
    return broken or f"{path}: cannot be read as {path.suffix[1:]}: {error}"


def _broken_line(path: Path) -> str | None:
    """Say which line of a text file is broken, and how; None if none is."""
    separator = SEPARATORS[path.suffix]
    quoted = re.compile(rf'(?<![^{separator}])"(?:[^"]|"")*+"(?![^{separator}\r\n])')
    quotes = (
        "a quote within a cell, or one that is not closed; put such a cell in double quotes and double those inside"
    )
    begin, columns, is_open = 1, 0, False
    row: list[str] = []  # its lines: a cell may hold line breaks
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row.append(line.decode("utf-8"))
            except UnicodeDecodeError:
                return f"{path}, line {number}: not UTF-8; save the file as UTF-8"
            is_open ^= line.count(b'"') % 2 == 1
            if is_open:
                continue
            bare = separator + quoted.sub("", "".join(row).removeprefix("\ufeff"))
            if '"' in bare and (len(row) > 1 or f'{separator}"' in bare):  # those of 2" x 4" are as they stand
                return f"{path}, line {begin}: {quotes}"
            cells = bare.count(separator)
            columns = columns or cells
            if cells > columns:
                return (
                    f"{path}, line {begin}: {cells} cells, the header has {columns}; put a cell that holds a "
                    f"{'comma' if separator == ',' else 'tab'} in double quotes"
                )
            row, begin = [], number + 1
    return f"{path}, line {begin}: {quotes}" if row else None


def _is_empty(values: pl.Series) -> pl.Series:
    """Which cells say nothing: null, NaN, or a string of no characters."""
    if values.dtype.is_float():
        return values.is_null() | values.is_nan()
    if values.dtype == pl.String:
        return values.is_null() | (values == "")
    return values.is_null()


def _row(frame: pl.DataFrame) -> list[str]:
    """The column that says which row of the file each is, if there is one."""
    return [name for name in frame.columns if name == "row"]


def _check_row(
    frame: pl.DataFrame, wrong: pl.Series, path: Path, column: str, what: str, way: str = "correct or remove the row"
) -> None:
    if (at := wrong.arg_max()) is not None and wrong[at]:
        row = frame["row"][at] if _row(frame) else at
        raise UserError(f"{path}, row {row + 1} below the header: `{column}` is {what}; {way}")


def _are_integers(path: Path, ids: pl.LazyFrame) -> dict[str, bool]:
    """Of each column of a text file, whether every one of its cells is the plain form of an integer."""
    if path.suffix == ".parquet":
        return dict.fromkeys(ids.collect_schema().names(), False)
    plain = pl.all().cast(pl.Int64, strict=False).cast(pl.String)
    return ids.select((plain == pl.all()).all(ignore_nulls=False)).collect(engine="streaming").row(0, named=True)


def _ids(values: pl.Series, path: Path, is_integer: bool) -> pl.Series:
    """Ids as Int64 or String."""
    if values.dtype.is_integer() or is_integer:
        return values.cast(pl.Int64)
    if values.dtype not in (pl.String, pl.Categorical, pl.Enum):
        raise UserError(f"{path}: `{values.name}` holds {values.dtype}; ids are integers or strings")
    return values.cast(pl.String)


def _numbers(frame: pl.DataFrame, column: str, path: Path, what: str = "a number") -> pl.Series:
    values = frame[column]
    if values.dtype.is_float():
        values = values.fill_nan(None)
    numbers = values.cast(pl.Float64, strict=False)
    finite = numbers.is_finite().fill_null(False)
    _check_row(frame, ~finite & values.is_not_null(), path, column, f"not {what}")
    return numbers


def _integers(frame: pl.DataFrame, column: str, path: Path) -> pl.Series:
    """Whole numbers; dates and times become unix seconds."""
    values = frame[column]
    if values.dtype in (pl.Date, pl.Datetime):
        return values.dt.epoch("s")
    if not values.dtype.is_numeric() and values.dtype not in (pl.String, pl.Null):
        what = "unix seconds, or dates and times" if column == "timestamp" else "numbers"
        raise UserError(f"{path}: `{column}` holds {values.dtype}; expected {what}")
    if not values.dtype.is_integer():
        what = "a number of unix seconds" if column == "timestamp" else "a number"
        values = _numbers(frame, column, path, what).floor()
    numbers = values.cast(pl.Int64, strict=False)
    _check_row(frame, numbers.is_null() & values.is_not_null(), path, column, "a number beyond 64 bits")
    return numbers


def _check_seconds(frame: pl.DataFrame, path: Path) -> None:
    if "timestamp" in frame.columns:
        seconds = frame["timestamp"].fill_null(0)
        way = "expected unix seconds: divide by 1000"
        _check_row(frame, seconds > LATEST, path, "timestamp", "so large that it looks like milliseconds", way)
        way = "expected unix seconds since 1970; correct or remove the row"
        _check_row(frame, seconds < 0, path, "timestamp", "negative", way)
