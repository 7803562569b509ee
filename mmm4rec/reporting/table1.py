"""Table I: the domains' statistics beside the published ones, and the gate that holds the two together."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc

from mmm4rec.errors import UserError
from mmm4rec.features.store import read_table
from mmm4rec.io import write_text

logger = logging.getLogger(__name__)

PUBLISHED = Path(__file__).with_name("published_table1.csv")
PAPER_SOURCES = {"food", "cds", "kindle", "movies", "home"}
GATED = ("users", "items", "interactions")  # never images: links die
SIZES = ("users", "items", "images", "interactions", "mean_length")
COVERAGE = ("image_coverage", "text_coverage")
COLUMNS = (
    *("dataset", "users", "items", "images", "image_coverage", "interactions", "mean_length", "text_coverage"),
    *(f"published_{name}" for name in SIZES),
)
# Slips of print: the value to accept beside the printed one, and why.
SLIPS = {
    ("office", "users"): (87346, "transposed digits; the released logs count 87,346"),
    ("movies", "items"): (59203, "printed with a point for the comma, 59.203"),
    ("cds", "mean_length"): (11.90, "interactions / users of the same row"),
    ("pretrain", "mean_length"): (10.30, "interactions / users of the same row"),
}


def published_users(domain: str) -> set[int]:
    """How many users one of the paper's domains has: as printed, and without the slip of print; none for others."""
    row = _published().get(domain)
    right = {SLIPS[key][0] for key in [(domain, "users")] if key in SLIPS}
    return {int(row["users"]), *map(int, right)} if row else set()


def published_sizes(domain: str) -> dict[str, int] | None:
    """Users, items, images and interactions of one of the paper's domains, slips of print put right; None for others.

    The domain ``pretrain`` is the union of the five sources.
    """
    row = _published().get(domain)
    if row is None:
        return None
    return {name: int(SLIPS.get((domain, name), (row[name],))[0]) for name in SIZES[:4]}


def _published() -> dict[str, dict[str, str]]:
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return {row.pop("domain"): row for row in csv.DictReader(file)}


def write_table1(
    domains: Mapping[str, Path],
    features: Mapping[str, Path] | None,
    published_names: Mapping[str, str],
    gate: Literal["error", "warn", "off"],
    out: Path,
    sources: Sequence[str] = (),
) -> None:
    """Write Table I as ``out`` (CSV) and, for reading, as Markdown beside it.

    Args:
        domains: folder of every prepared domain, by its key in the configuration.
        features: Parquet file of features, by the same keys; images and texts are the items that have
            one there. Left empty for domains without such a file.
        published_names: name in ``published_table1.csv``, by the same keys, for domains that should be the paper's:
            categories of the 2018 edition with ``k_core: 5``.
        gate: what to do where users, items or interactions differ from the published ones.
        out: path of the CSV file.
        sources: keys of the pre-training domains; their union becomes the row ``pretrain``, beside the published one
            if they are the paper's five.

    Raises:
        UserError: the numbers differ and ``gate`` is ``error``; nothing is written.
    """
    published = _published()
    sizes = {key: _sizes(folder, (features or {}).get(key)) for key, folder in domains.items()}
    names = dict(published_names)
    if sources:
        union = {name: [sizes[key][name] for key in sources] for name in (*SIZES[:4], "texts")}
        sizes["pretrain"] = {
            name: None if None in values else sum(filter(None, values)) for name, values in union.items()
        }
        if {names.get(key) for key in sources} == PAPER_SOURCES:
            names["pretrain"] = "pretrain"
    if gate != "off" and (report := _differences(sizes, names, published)):
        if gate == "error":
            raise UserError(f"{report}; check the raw files and `k_core`, or set `gate: warn` to go on")
        logger.warning("%s", report)

    rows = [_row(key, values, published.get(names.get(key, ""), {})) for key, values in sizes.items()]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out, text.getvalue())
    write_text(out.with_suffix(".md"), _markdown(rows, names))


def _sizes(folder: Path, features: Path | None) -> dict[str, int | None]:
    with (folder / "statistics.csv").open(encoding="utf-8", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    there: dict[str, int | None] = {"texts": None, "images": None}
    if features is not None:
        has = read_table(features, ["has_text", "has_image"])
        there = {"texts": pc.sum(has["has_text"]).as_py(), "images": pc.sum(has["has_image"]).as_py()}
    return {name: int(last[name]) for name in GATED} | there


def _differences(sizes: Mapping[str, Any], names: Mapping[str, str], published: Mapping[str, Any]) -> str:
    """Where users, items or interactions differ from print, with the slips of print accepted; empty if nowhere."""
    found = []
    for key, name in names.items():
        for column in GATED if key in sizes else ():
            ours, printed = sizes[key][column], int(published[name][column])
            if ours not in (printed, SLIPS.get((name, column), (printed,))[0]):
                found.append(f"{key} has {ours:,} {column}, published {printed:,} ({ours - printed:+,})")
    return f"Table I differs from the paper: {'; '.join(found)}" if found else ""


def _row(key: str, sizes: Mapping[str, Any], published: Mapping[str, str]) -> dict[str, Any]:
    def coverage(there: int | None) -> str | None:
        return None if there is None else f"{there / sizes['items']:.4f}"

    return {
        "dataset": key,
        **{name: sizes[name] for name in SIZES[:4]},
        "text_coverage": coverage(sizes["texts"]),
        "image_coverage": coverage(sizes["images"]),
        "mean_length": f"{sizes['interactions'] / sizes['users']:.2f}",
        **{f"published_{name}": published.get(name) for name in SIZES},
    }


def _markdown(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    def cell(value: Any) -> str:
        return "" if value is None else f"{float(value):,.2f}" if "." in str(value) else f"{int(value):,}"

    def both(row: Mapping[str, Any], name: str) -> str:
        printed = cell(row[f"published_{name}"])
        return cell(row[name]) + (f" ({printed})" if printed else "")

    printed = any(row[f"published_{name}"] is not None for row in rows for name in SIZES)
    brackets = "In brackets: as published. " if printed else ""
    lines = [
        "# Table I: the domains",
        "",
        f"{brackets}Images are those that could be fetched; links die, so they are not compared.",
        "",
        "| dataset | users | items | images | image coverage | text coverage | interactions | mean length |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        coverage = ["" if row[name] is None else f"{float(row[name]):.2%}" for name in COVERAGE]
        cells = [row["dataset"], *(both(row, name) for name in SIZES[:3]), *coverage]
        lines.append(f"| {' | '.join([*cells, *(both(row, name) for name in SIZES[3:])])} |")
    shown = set(names.values())
    slips = [
        f"- {name}, {column.replace('_', ' ')}: {cell(value)} is right ({why})."
        for (name, column), (value, why) in SLIPS.items()
        if name in shown
    ]
    return "\n".join([*lines, *(["", "Slips of print:", "", *slips] if slips else [])]) + "\n"
