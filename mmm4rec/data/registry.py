"""Where raw files come from and where they are kept: a typed reader of ``registry.yaml``.

The workflow imports this module, so it stays light.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

Edition = Literal[2018, 2023]
Kind = Literal["ratings", "metadata"]
DEMO = "Demo_"  # begins the names of invented categories


@dataclass(frozen=True)
class Source:
    """Where one raw file comes from; size, sum and (about) rows are None where nobody knows them yet."""

    urls: tuple[str, ...]
    licence: str
    bytes: int | None
    sha256: str | None
    rows: int | None = None


@cache
def _registry() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("registry.yaml").read_text(encoding="utf-8"))
    return values


def source(category: str, edition: Edition, kind: Kind) -> Source:
    """Mirrors, in order, and the known size and sum of a raw file of any category."""
    spec = _registry()["editions"][edition]
    wanted = {"category": category, "edition": edition, "kind": kind}
    known: dict[str, Any] = next((row for row in _registry()["files"] if wanted.items() <= row.items()), {})
    return Source(
        urls=tuple(url.format(category=category) for url in spec[kind]["urls"]),
        licence=spec["licence"],
        bytes=known.get("bytes"),
        sha256=known.get("sha256"),
        rows=_registry()["ratings"].get(category) if (edition, kind) == (2018, "ratings") else None,
    )


def raw_path(raw: Path, category: str, edition: Edition, kind: Kind) -> Path:
    """Path of a raw file below the folder ``raw``, downloaded or brought by hand."""
    return raw / _registry()["editions"][edition][kind]["raw"].format(category=category)


def paper_name(category: str) -> str | None:
    """What the paper calls a category, e.g. ``scientific``; None if it is not one of the paper's ten."""
    name: str | None = _registry()["paper_names"].get(category)
    return name
