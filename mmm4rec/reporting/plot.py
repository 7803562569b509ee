"""What the figures share: their panels, and how they are written."""

from collections.abc import Mapping, Sequence
from itertools import chain, cycle
from pathlib import Path
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmm4rec.io import atomic

#: MMM4Rec's colours, the same in all figures; the others' follow in their order
OURS = {"mmm4rec": "tab:red", "mmm4rec_noid": "tab:orange"}
OTHERS = ("tab:blue", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:gray", "tab:olive", "tab:cyan")
CHARACTERS_AN_INCH, LINE_HEIGHT = 18, 0.12  # of the text below; inches
DPI = 130  # of the screens that reports are read on; a panel is some 500 pixels wide


def colours_of(systems: Sequence[str]) -> dict[str, str]:
    """A colour for every system, MMM4Rec's its own.

    >>> colours_of(["missrec", "mmm4rec", "sasrec"])
    {'missrec': 'tab:blue', 'mmm4rec': 'tab:red', 'sasrec': 'tab:green'}
    """
    rest = cycle(OTHERS)
    return {system: OURS[system] if system in OURS else next(rest) for system in systems}


def panels(rows: int, columns: int, *, width: float = 4.2, height: float = 3.0) -> tuple[Figure, list[list[Axes]]]:
    """A figure and its axes, by row; a panel is ``width`` by ``height`` inches."""
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes: list[list[Axes]] = figure.subplots(rows, columns, squeeze=False).tolist()
    for row in axes:
        for axis in row:
            axis.grid(color="0.92", linewidth=0.8)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
    return figure, axes


def write_below(figure: Figure, sentences: Mapping[str, Sequence[str]]) -> None:
    """What is to be known of each dataset as small text below the panels; the same of several datasets stands once."""
    said: dict[str, list[str]] = {}
    for dataset, known in sentences.items():
        said.setdefault(" ".join(known).replace("**", ""), []).append(dataset)
    per_line = round(CHARACTERS_AN_INCH * figure.get_figwidth())
    texts = [f"{', '.join(datasets)}: {text}" for text, datasets in said.items()]
    lines = list(chain(*(wrap(text, per_line, subsequent_indent="    ") for text in texts)))
    figure.set_figheight(figure.get_figheight() + LINE_HEIGHT * len(lines))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5, color="0.35")


def write_png(path: Path, figure: Figure) -> None:
    """Write a figure atomically."""
    with atomic(path) as part:
        figure.savefig(part, format="png", dpi=DPI)
