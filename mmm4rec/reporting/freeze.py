"""Finished results as files to be kept under version control: tables, figures, runs without weights, provenance."""

import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmm4rec.errors import UserError
from mmm4rec.io import read_json, write_json
from mmm4rec.provenance import commit

#: of a run folder; not the weights, which are large and can be made again
RUN_FILES = ("config.json", "metrics.json", "environment.json", "history.csv", "history_indomain.csv", "ranks.parquet")


def freeze(results: Path, config: dict[str, Any], out: Path) -> None:
    """Copy what a run of the workflow has made to ``out``, and say there where it comes from.

    Args:
        results: root of the run, the config key ``results``.
        config: the whole configuration.
        out: folder below ``published``; whatever was there is replaced.

    Raises:
        UserError: there is no table.
    """
    tables = sorted(path for kind in ("csv", "md") for path in (results / "tables").rglob(f"*.{kind}"))
    if not tables:
        raise UserError(f"{results / 'tables'}: no table to freeze; run the workflow first")
    runs = [path.parent for stage in ("runs", "pretrained") for path in (results / stage).rglob("metrics.json")]
    shutil.rmtree(out, ignore_errors=True)
    figures = [path for kind in ("csv", "png") for path in (results / "figures").rglob(f"*.{kind}")]
    for path in [*tables, *figures]:
        _copy(path, out / path.relative_to(results))
    for run in runs:
        for name in RUN_FILES:
            if (run / name).exists():
                _copy(run / name, out / run.relative_to(results) / name)
    environments = [read_json(run / "environment.json") for run in runs]
    text = json.dumps(config, sort_keys=True, default=str)
    provenance = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "seeds": sorted({e["seed"] for e in environments}),
        "commits_of_runs": sorted({str(e["commit"]) for e in environments}),
        "devices": sorted({str(e["device"]) for e in environments}),
        "platforms": sorted({e["platform"] for e in environments}),
        "packages": _versions(environments),
        "config": json.loads(text),
    }
    write_json(out / "provenance.json", provenance)


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def _versions(environments: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Every version that any run was made with, by package."""
    found: dict[str, set[str]] = {}
    for environment in environments:
        for name, version in environment["packages"].items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in sorted(found.items())}
