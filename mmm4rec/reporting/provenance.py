"""Where a run of the workflow comes from, for reading."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmm4rec.io import write_text
from mmm4rec.provenance import summary


def write_provenance(runs: Sequence[Path], config: dict[str, Any], out: Path) -> None:
    """Write ``provenance.md``: commit, devices, seeds, versions, configuration.

    Args:
        runs: run folders of pre-training and fine-tuning.
        config: see ``mmm4rec.config.result_settings``.
        out: path of ``provenance.md``.
    """
    found = summary(runs, config)
    packages = found.pop("packages")
    settings = json.dumps(found.pop("config"), indent=2, ensure_ascii=False)
    rows = [(name.replace("_", " "), value) for name, value in found.items()] + list(packages.items())
    lines = ["# Where these results come from", "", f"{len(runs)} runs.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_text(value)} |" for name, value in rows]
    lines += ["", "## Configuration", "", "```json", settings, "```"]
    write_text(out, "\n".join(lines) + "\n")


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
