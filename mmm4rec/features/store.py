"""The feature store: one Parquet file a domain and encoder (docs/architecture.md). Needs numpy and pyarrow alone.

Shapes: N items of the catalogue, F encoder width.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmm4rec.errors import UserError
from mmm4rec.io import write_parquet

logger = logging.getLogger(__name__)

USUAL_SHARE = 0.95  # of a domain's items that a user's file describes; with fewer, some ids may be mistaken


@dataclass(frozen=True)
class Features:
    """Features of all items of a domain, in the order of their ids.

    Attributes:
        item_ids: [N] int32, 1..N.
        items: [N] raw ids (str).
        text: [N, F_text] float16 or float32, zero where missing; None if no item has any.
        image: [N, F_image], likewise.
        has_text: [N] bool.
        has_image: [N] bool; False also where the features of a white picture stand in.
        metadata: encoder, precision, text_fields, missing_image.
        text_dropped: [N, F_text] features of the texts with some of their words left out, or those of the whole text
            where an item has no others; None if no item has any, or they are not read.
    """

    item_ids: np.ndarray
    items: np.ndarray
    text: np.ndarray | None
    image: np.ndarray | None
    has_text: np.ndarray
    has_image: np.ndarray
    metadata: dict[str, str]
    text_dropped: np.ndarray | None = None


def write_features(
    path: Path,
    item_ids: np.ndarray,
    items: Sequence[str] | np.ndarray | pa.Array,
    text: np.ndarray | None,
    has_text: np.ndarray,
    image: np.ndarray | None,
    has_image: np.ndarray,
    metadata: Mapping[str, str],
    text_dropped: np.ndarray | None = None,
) -> None:
    """Write a feature file atomically; arguments as in ``Features``.

    A row that an item does not have becomes null, unless it was filled with something else than zeros. A modality
    without any row has no column.
    """
    assert np.array_equal(item_ids, np.arange(1, len(item_ids) + 1))
    columns = {
        "item_id": pa.array(item_ids, pa.int32()),
        "item": pa.array(items, pa.string()),
        "has_text": pa.array(has_text, pa.bool_()),
        "has_image": pa.array(has_image, pa.bool_()),
    }
    given = (("text", text, has_text), ("image", image, has_image), ("text_dropped", text_dropped, has_text))
    for name, values, has in given:
        if values is None or not (kept := has | values.any(axis=1)).any():
            continue
        assert values.dtype in (np.float16, np.float32), values.dtype
        flat = pa.array(values.reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(~kept))
    write_parquet(path, pa.table(columns), dict(metadata))


def read_features(path: Path, *, text_dropped: bool = False) -> Features:
    """Read a feature file; nulls become zero rows, a column without nulls is not copied.

    Args:
        path: the file.
        text_dropped: read that column too, if there is one.

    Raises:
        UserError: the file is missing, is no feature file, or holds numbers that are not finite.
    """
    table = read_table(path, without=() if text_dropped else ("text_dropped",))
    lacking = {"item_id", "item", "has_text", "has_image"} - set(table.column_names)
    if lacking:
        raise UserError(f"{path}: no feature file, it has no column {', '.join(sorted(lacking))}; write it again")
    item_ids = table["item_id"].to_numpy()
    if not np.array_equal(item_ids, np.arange(1, len(item_ids) + 1)):
        raise UserError(f"{path}: item_id does not run 1, 2, ... without gaps; write the file again")
    items = table["item"].to_numpy()
    values = {
        name: to_matrix(table[name], items, f"{path}: column `{name}`")[0] if name in table.column_names else None
        for name in ("text", "image", "text_dropped")
    }
    return Features(
        item_ids=item_ids,
        items=items,
        **values,
        has_text=table["has_text"].to_numpy(),
        has_image=table["has_image"].to_numpy(),
        metadata={key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()},
    )


def read_table(path: Path, columns: list[str] | None = None, *, without: Collection[str] = ()) -> pa.Table:
    """Read a Parquet file: some of its columns, or all but some.

    Raises:
        UserError: it is missing or is no Parquet file.
    """
    try:
        if without:
            columns = [name for name in pq.read_schema(path).names if name not in without]
        return pq.read_table(path, columns=columns)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except pa.ArrowInvalid:
        raise UserError(f"{path}: {_no_table(path)}") from None


def _no_table(path: Path) -> str:
    """Why Arrow does not read a file."""
    try:
        names = pq.read_schema(path).names
    except pa.ArrowInvalid:
        names = []
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        return f"column `{twice[0]}` stands there {names.count(twice[0])} times; keep one of them"
    return "not a readable Parquet file; write it anew as Parquet"


def to_matrix(column: pa.ChunkedArray, names: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists of floats as a matrix.

    Args:
        column: N lists of one width, of float16, float32 or float64; null is missing.
        names: what to call the rows in messages, [N].
        where: the file and column, for messages.

    Returns:
        The matrix [N, F], float16 if the column is, else float32; missing rows are zero. And [N] bool, rows that are
        there.

    Raises:
        UserError: the column holds something else, lists of several widths, or numbers that are not finite.
    """
    kind, types = column.type, pa.types
    fixed = types.is_fixed_size_list(kind)
    if not (fixed or types.is_list(kind) or types.is_large_list(kind)) or not types.is_floating(kind.value_type):
        raise UserError(f"{where}: expected a list of floats a row, found {kind}")
    lists = column.combine_chunks()
    present = lists.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(present)

    def at(row: int) -> str:
        return f"{where}, row {row + 1} (item {names[row]})"

    lengths = np.full(len(rows), kind.list_size) if fixed else pc.list_value_length(lists).drop_null().to_numpy()
    if (empty := lengths == 0).any():
        raise UserError(f"{at(rows[int(np.argmax(empty))])}: an empty list; write null where an item has no features")
    width = kind.list_size if fixed else int(lengths[0]) if len(rows) else 0
    if (odd := lengths != width).any():
        first = int(np.argmax(odd))
        raise UserError(f"{at(rows[first])}: {lengths[first]} numbers, the rows before have {width}; give one width")

    flat = lists.flatten()  # leaves out the slots of nulls, in lists of fixed size too
    if flat.null_count:
        first = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False)))
        raise UserError(f"{at(rows[first // width])}: a null among the numbers")
    values = flat.to_numpy().reshape(len(rows), width)
    if values.dtype != np.float16:
        with np.errstate(over="ignore"):  # too large for float32: infinite, and reported below
            values = values.astype(np.float32, copy=False)
    if not (finite := np.isfinite(values).all(axis=1)).all():
        raise UserError(f"{at(rows[int(np.argmin(finite))])}: a number that is not finite (or beyond float32)")
    if len(rows) == len(lists):
        return values, present
    matrix = np.zeros((len(lists), width), values.dtype)
    matrix[rows] = values
    return matrix, present


def log_rows(path: Path, there: np.ndarray, names: Any) -> None:
    """Say how many items have a row in a user's file: a warning where ids may be mistaken in some of them.

    Args:
        path: the file.
        there: [N] bool.
        names: [N] raw ids, for messages.
    """
    known = int(there.sum())
    lacking = "" if known == len(there) else f", {names[int(np.argmin(there))]!s} is the first without"
    level = logging.WARNING if known < USUAL_SHARE * len(there) else logging.INFO
    logger.log(level, "%s: %d of %d items have a row%s", path, known, len(there), lacking)


def check_missing(policy: str, has: Mapping[str, np.ndarray], names: Any, where: str) -> None:
    """Count what is missing, a modality a line of the log.

    Args:
        policy: ``zero`` or ``error``, the config's ``missing_features``.
        has: [N] bool by modality.
        names: [N] raw ids, for messages.
        where: the domain, for messages.

    Raises:
        UserError: something is missing and the policy is ``error``.
    """
    for modality, there in has.items():
        n = int((~there).sum())
        if n and policy == "error":
            raise UserError(
                f"{where}: {n} of {len(there)} items have no {modality} features, item {names[int(np.argmin(there))]} "
                "first; add them, or set `missing_features: zero`"
            )
        logger.info("%s: %d of %d items have %s features, %d have none", where, len(there) - n, len(there), modality, n)
