"""Cost against size, a panel for each thing that is measured: ours, and what it is held against."""

from pathlib import Path

from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from benchmarks.table import Row
from mmm4rec.reporting.plot import panels, write_png

COLUMNS = 3


def draw(path: Path, rows: list[Row]) -> None:
    """Draw rows; what was measured at one size is a bar, at more a line."""
    many = sorted({row.what for row in rows if len({other.size for other in rows if other.what == row.what}) > 1})
    single = [row for row in rows if row.what not in many]
    if not many:
        figure, ((axis,),) = panels(1, 1, width=7.0, height=1.2 + 0.3 * len(single))
        names = [row.what for row in single]
        axis.barh(names, [row.share for row in single], color="C0", height=0.6)
        axis.axvline(1, color="0.4", linewidth=0.8)
        axis.margins(y=0.01)
        axis.invert_yaxis()
        limits = sorted({row.against for row in single})
        axis.set_xlabel(f"share of {', '.join(limits)} reached")
        write_png(path, figure)
        return
    n_rows = -(-len(many) // COLUMNS)
    figure, axes = panels(n_rows, min(COLUMNS, len(many)))
    for axis in [axis for row in axes for axis in row][len(many) :]:
        axis.set_visible(False)
    for axis, what in zip([axis for row in axes for axis in row], many, strict=False):
        points = [row for row in rows if row.what == what]
        ours = sorted({(row.size, row.seconds) for row in points})
        axis.plot(*zip(*ours, strict=True), "o-", color="C0", label="mmm4rec")
        for k, against in enumerate(dict.fromkeys(row.against for row in points), start=1):
            line = sorted((row.size, row.limit) for row in points if row.against == against)
            axis.plot(*zip(*line, strict=True), "o--", color=f"C{k}", label=against, linewidth=1)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(sorted({row.size for row in points}))
        axis.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(EngFormatter(unit="s"))
        for one in (axis.xaxis, axis.yaxis):
            one.set_minor_locator(NullLocator())
        axis.set_title(what, fontsize=9)
        axis.set_xlabel(points[0].unit, fontsize=8)
        axis.set_ylabel("time", fontsize=8)
        axis.legend(fontsize=7, frameon=False)
    write_png(path, figure)
