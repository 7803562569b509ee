"""The paper's printed numbers, by this project's keys, and what is known to be wrong with them."""

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files

from mmm4rec.config import read_system
from mmm4rec.reporting.table1 import published_users

Cell = tuple[str, str, str]  # dataset, system, metric


@cache
def published(table: int) -> dict[Cell, float]:
    """Values of a table of arXiv 2506.02916, by (dataset, system, metric). Printed values, slips included."""
    text = files("mmm4rec.reporting").joinpath("published.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {(r["dataset"], r["system"], r["metric"]): float(r["value"]) for r in rows if r["table"] == str(table)}


def comparable(table: int, users: Mapping[str, int], paper: Collection[str] = ()) -> dict[Cell, float]:
    """Printed values of the datasets that have the paper's users; others of the same name are other data.

    How many users Table IV is about is not printed; and links die. There the whole domain must be the paper's.

    Args:
        table: of the paper.
        users: how many users are ranked, by dataset.
        paper: datasets of Table IV that are items with an image of the paper's domains.
    """
    same = set(paper) if table == 4 else {name for name, number in users.items() if number in published_users(name)}
    return {cell: value for cell, value in published(table).items() if cell[0] in same}


#: what the authors' own logs say where a printed cell is something else, by (table, dataset, system, metric)
LOGGED = {
    (2, "scientific", "mmm4rec", "ndcg@50"): 0.100280,
    (2, "pantry", "mmm4rec", "ndcg@50"): 0.072967,
    (3, "scientific", "mmm4rec_noid", "ndcg@50"): 0.094442,
    (3, "arts", "mmm4rec_noid", "recall@10"): 0.121994,
    (3, "arts", "mmm4rec_noid", "ndcg@10"): 0.073981,
    (3, "office", "mmm4rec_noid", "recall@10"): 0.125295,
    (5, "arts", "mmm4rec", "seconds_per_epoch"): 16.49,  # printed is the mean without ids
    (6, "scientific", "mmm4rec", "ndcg@50"): 0.100280,
}


def print_cell(table: int, printed: Mapping[Cell, float], cell: Cell) -> str:
    """A printed value for a rendered table, marked if it is a slip; empty where nothing is printed."""
    if cell not in printed:
        return ""
    return _as_printed(table, printed[cell]) + ("\\*" if (table, *cell) in LOGGED else "")


def logged(table: int, printed: Mapping[Cell, float], cell: Cell) -> float | str:
    """What the authors' log says where a printed cell beside ours is a slip; empty elsewhere."""
    return LOGGED.get((table, *cell), "") if cell in printed else ""


def _as_printed(table: int, value: float) -> str:
    return f"{value:g}" if table == 5 else f"{value:.4f}"


def slips(table: int, printed: Mapping[Cell, float], systems: Sequence[str]) -> list[str]:
    """What is to be said below a rendered table about its marked cells, a line each.

    Args:
        table: of the paper.
        printed: the cells beside which ours stand.
        systems: the table's columns, or lines.
    """
    lines = []
    for (number, *key), in_log in LOGGED.items():
        dataset, system, metric = cell = (key[0], key[1], key[2])
        if number != table or cell not in printed or system not in systems:
            continue
        cut = " (cut, not rounded)" if math.floor(in_log * 1e4) == round(printed[cell] * 1e4) else ""
        name, value = read_system(system).name, _as_printed(table, printed[cell])
        says = f"{in_log:g}" if table == 5 else f"{in_log:.6f}"
        lines.append(
            f"\\* a slip of print: {dataset}, {name}, {metric}: {value} is printed{cut}, the authors' log of this run "
            f"says {says}."
        )
    return lines
