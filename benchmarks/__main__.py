"""``python -m benchmarks``: measure, and write a CSV file a benchmark."""

import importlib
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.figure import draw
from benchmarks.table import as_in_training, write_page, write_rows
from mmm4rec.device import resolve_device

NAMES = ("preparation", "training", "loss", "ssd", "conv", "ranking", "features", "systems", "epoch", "scale")


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(NAMES)}; all of them without")] = None,
    out: Annotated[Path, typer.Option(help="folder that is written to")] = Path("results/benchmarks"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    quick: Annotated[bool, typer.Option(help="small sizes, to see that all runs")] = False,
) -> None:
    """Measure the named benchmarks and draw them."""
    if unknown := set(names or ()) - set(NAMES):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: choose among {', '.join(NAMES)}")
    size, kind = "quick" if quick else "full", resolve_device(device).type
    as_in_training()
    for name in names or NAMES:
        rows = []
        for row in importlib.import_module(f"benchmarks.{name}").rows(size, kind):
            print(
                f"{name:12} {row.what:36} {row.size:>11,.0f} {row.unit:9} {row.seconds:10.4g} s  "
                f"{row.share:7.3g} x {row.against} ({row.limit:.4g} s)  {row.memory:7.0f} MiB  {row.remark}",
                flush=True,
            )
            rows.append(row)
            write_rows(out / f"{name}.csv", rows, kind)  # a later row may fail
        draw(out / f"{name}.png", rows)
        write_page(out, NAMES)


if __name__ == "__main__":  # processes that measure import this file too
    typer.run(main)
