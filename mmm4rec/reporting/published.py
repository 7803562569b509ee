"""The paper's printed numbers, by this project's keys."""

import csv
from functools import cache
from importlib.resources import files


@cache
def published(table: int) -> dict[tuple[str, str, str], float]:
    """Values of a table of arXiv 2506.02916, by (dataset, system, metric). Printed values, slips included."""
    text = files("mmm4rec.reporting").joinpath("published.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {(r["dataset"], r["system"], r["metric"]): float(r["value"]) for r in rows if r["table"] == str(table)}


#: printed cells known to be wrong, and what the authors' own log says
SLIPS = {
    (3, "scientific", "mmm4rec_noid", "ndcg@50"): "0.0929 is printed; the authors' log of this run says 0.0944",
}
