"""Features that the user brings along, put into the order of a prepared domain's items."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmm4rec.data.parse import warn_of_unread
from mmm4rec.errors import UserError
from mmm4rec.features.store import check_missing, log_rows, read_table, to_matrix, write_features

logger = logging.getLogger(__name__)


def import_features(settings: dict[str, Any], domain: Path, files: Path | Mapping[str, Path], out: Path) -> None:
    """Write the feature file ``out`` (docs/architecture.md) from features made elsewhere.

    Args:
        settings: what ``mmm4rec.config.embed_settings`` gives for a domain with ``features``.
        domain: folder of the prepared domain.
        files: a Parquet file with ``item_id`` (raw ids, integers or strings) and ``text``, ``image`` or both: lists of
            floats of one width, null or no row where an item has none; a vector of zeros is none. Or a file each, by
            ``text`` and ``image``.
            Beside ``text`` may stand ``text_dropped``: vectors of the same width, of texts with some of their words
            left out; null where an item has only that of its whole text.
        out: the feature file; float16 stays float16, anything else becomes float32.

    Raises:
        UserError: a file is not as described, all vectors of a column are equal, fewer than half of the items are
            found, or features are missing and ``missing_features`` is ``error``.
    """
    table = read_table(Path(domain) / "items.parquet", ["item_id", "item"])
    items = table["item"].combine_chunks().cast(pa.string())
    found = np.zeros(len(items), bool)
    values: dict[str, np.ndarray] = {}
    has: dict[str, np.ndarray] = {}
    sources = _sources(files)
    for path, columns in sources:
        given = read_table(path)
        modalities = [name for name in columns if name in given.column_names]
        if "item_id" not in given.column_names or not modalities:
            raise UserError(
                f"{path}: expected columns item_id and {' or '.join(columns)}, found {', '.join(given.column_names)}"
            )
        of_file = [name for other, names in sources if other == path for name in names]
        warn_of_unread(path, given.column_names, ("item_id", *of_file, "text_dropped"))
        if "text_dropped" in given.column_names and ("text" not in of_file or "text" not in given.column_names):
            logger.warning("%s: `text_dropped` is left out; it is read only beside `text` of the same file", path)
        ids = _raw_ids(given["item_id"], path)
        at = pc.index_in(items, value_set=ids)
        match = at.is_valid().to_numpy(zero_copy_only=False)
        row = at.fill_null(0).to_numpy()
        if not match.any():
            raise UserError(f"{path}: no id is an item of {domain} (here {_some(ids)}; there {_some(items)})")
        log_rows(path, match, items)
        found |= match
        for name in modalities:
            vectors, there = _of_items(given[name], ids, row, match, f"{path}: column `{name}`")
            values[name] = np.zeros((len(items), vectors.shape[1]), vectors.dtype)
            values[name][there] = vectors
            has[name] = there
        if "text_dropped" in given.column_names and "text" in modalities:
            at_column = f"{path}: column `text_dropped`"
            vectors, there = _of_items(given["text_dropped"], ids, row, match, at_column)
            if there.any():
                values["text_dropped"] = _of_fewer_words(values["text"], has["text"], vectors, there, items, at_column)
    where = ", ".join(str(path) for path, _ in sources)
    if 2 * found.sum() < len(items):
        raise UserError(
            f"{where}: only {found.sum()} of the {len(items)} items of {domain} are found; are the ids raw ids "
            f"({_some(items)})?"
        )
    check_missing(settings["missing_features"], has, items, where)
    nothing = np.zeros(len(items), bool)
    metadata = {"encoder": "precomputed", "precision": "as given", "text_fields": "as given", "missing_image": "zero"}
    write_features(
        out,
        table["item_id"].to_numpy(),
        items,
        values.get("text"),
        has.get("text", nothing),
        values.get("image"),
        has.get("image", nothing),
        metadata,
        values.get("text_dropped"),
    )


def _of_items(
    column: pa.ChunkedArray, ids: pa.Array, row: np.ndarray, match: np.ndarray, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors [K, F] of the K items that have one in a column, and which of the items [N] bool those are.

    Args:
        column: R lists of floats, or nulls.
        ids: [R] raw ids.
        row: [N], each item's row.
        match: [N] bool, which items have a row.
        where: the file and column, for messages.

    Raises:
        UserError: the column is not as it should be, or all vectors are equal.
    """
    matrix, present = to_matrix(column, ids, where)
    there = match & present[row]
    vectors = matrix[row[there]]
    speaks = vectors.any(axis=1)
    if not speaks.all():
        logger.warning(
            "%s: zeros alone are taken as no features, for %d of %d items; write null where an item has none",
            *(where, len(speaks) - speaks.sum(), len(match)),
        )
        there[there] = speaks
        vectors = vectors[speaks]
    if len(vectors) > 1 and (vectors.min(axis=0) == vectors.max(axis=0)).all():
        raise UserError(f"{where}: the same vector for all of {len(vectors)} items tells nothing of them; make it anew")
    return vectors, there


def _of_fewer_words(
    text: np.ndarray, has_text: np.ndarray, dropped: np.ndarray, there: np.ndarray, items: pa.Array, where: str
) -> np.ndarray:
    """Text features [N, F], but those of fewer words where ``there`` [N] bool says that ``dropped`` [.., F] has them.

    Raises:
        UserError: an item has such features and no text features, or they have another width.
    """
    if (lone := there & ~has_text).any():
        raise UserError(
            f"{where}: item {items[int(np.argmax(lone))]} has such features and none of its whole text; add those in "
            "column `text`"
        )
    if dropped.shape[1] != text.shape[1]:
        raise UserError(
            f"{where}: {dropped.shape[1]} numbers a row, column `text` has {text.shape[1]}; make both with one encoder"
        )
    logger.info("%s: %d of %d items have features of fewer words", where, there.sum(), len(there))
    filled = text.astype(np.result_type(text, dropped))
    filled[there] = dropped
    return filled


def _sources(files: Path | Mapping[str, Path]) -> list[tuple[Path, list[str]]]:
    """The files, each with the modalities it is to give."""
    if isinstance(files, Mapping):
        return [(Path(path), [name]) for name, path in files.items()]
    return [(Path(files), ["text", "image"])]


def _raw_ids(column: pa.ChunkedArray, path: Path) -> pa.Array:
    """The ids as strings, each of them once."""
    ids = column.combine_chunks()
    if pa.types.is_floating(ids.type) or pa.types.is_nested(ids.type):
        raise UserError(f"{path}: column `item_id` must hold integers or strings, found {ids.type}")
    ids = ids.cast(pa.string())
    if ids.null_count:
        row = int(np.argmax(ids.is_null().to_numpy(zero_copy_only=False)))
        raise UserError(f"{path}: column `item_id`, row {row + 1}: null; every row needs an id")
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise UserError(f"{path}: item {twice[0]['values']} has {twice[0]['counts']} rows; keep one row an item")
    return ids


def _some(ids: pa.Array) -> str:
    return ", ".join(repr(str(name)) for name in ids[:3]) + (", ..." if len(ids) > 3 else "")
