"""Finished results as files to be kept under version control: tables, figures, runs without weights, provenance."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmm4rec.config import WITH_IMAGE, parse_config
from mmm4rec.errors import UserError
from mmm4rec.io import write_json
from mmm4rec.planning.jobs import all_jobs, same_settings
from mmm4rec.provenance import summary

#: of a run folder; not the weights, which are large and can be made again
RUN_FILES = ("config.json", "metrics.json", "environment.json", "history.csv", "history_indomain.csv", "ranks.parquet")
STAGES = ("runs", "truncation", "pretrained")
FOLDERS = ("tables", "figures", *STAGES)


def freeze(results: Path, config: dict[str, Any], out: Path) -> None:
    """Copy what a run of the workflow has made to ``out``, and say there where it comes from.

    Runs that the configuration does not ask for, or asks for with other settings, are copied too, and so are tables and
    figures of domains that it has not; ``provenance.json`` names them under ``not_of_config``. Runs that it asks for in
    vain stand there under ``missing``.

    Args:
        results: root of the run, the config key ``results``.
        config: see ``mmm4rec.config.result_settings``.
        out: folder below ``published``; whatever was there is replaced, but for its README.md.

    Raises:
        UserError: there is no table, ``out`` is where results are or holds other things, or the configuration is none.
    """
    at, sources = out.resolve(), [(results / name).resolve() for name in FOLDERS]
    if any(source.is_relative_to(at) or at.is_relative_to(source) for source in sources):
        raise UserError(f"--out {out}: results are there; name a folder of its own, as published/<name>")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    if others := sorted(there - {"README.md", "provenance.json", *FOLDERS}):
        raise UserError(f"--out {out}: {others[0]} is there, which is no frozen result; name a folder of its own")
    tables = sorted(path for kind in ("csv", "md") for path in (results / "tables").rglob(f"*.{kind}"))
    if not tables:
        raise UserError(f"{results / 'tables'}: no table to freeze; run the workflow first")
    runs = sorted(path.parent for stage in STAGES for path in (results / stage).rglob("metrics.json"))
    known = parse_config(config)
    asked = {job.outputs[0].parent.relative_to(known.results): job for job in all_jobs(known) if job.stage}
    figures = sorted(path for kind in ("csv", "png") for path in (results / "figures").rglob(f"*.{kind}"))
    made = [run.relative_to(results) for run in runs]
    other = [
        name
        for name in made
        if not (job := asked.get(name)) or not same_settings(results / name, job.settings, job.pretraining)
    ]
    domains = {name + end for name in known.domains for end in ("", WITH_IMAGE)}
    of_others = [path for path in (p.relative_to(results) for p in [*tables, *figures]) if not _is_of(domains, path)]
    provenance = summary(runs, config) | {
        "not_of_config": [name.as_posix() for name in [*other, *of_others]],
        "missing": sorted(name.as_posix() for name in asked.keys() - (set(made) - set(other))),
    }
    readme = out / "README.md"  # written by hand
    for path in out.iterdir() if out.exists() else ():  # not before: the checkout would count as changed
        if path.is_dir():
            shutil.rmtree(path)
        elif path != readme:
            path.unlink()
    for path in [*tables, *figures]:
        _copy(path, out / path.relative_to(results))
    for run in runs:
        for name in RUN_FILES:
            if (run / name).exists():
                _copy(run / name, out / run.relative_to(results) / name)
    write_json(out / "provenance.json", provenance)


def _is_of(domains: Collection[str], path: Path) -> bool:
    """Whether a table or figure, its path below the results, is of all domains together or of one of these."""
    _, *folders, _ = path.parts
    return not folders or any(path.stem.removesuffix(part) in domains for part in ("", "_runs", "_tests"))


def _copy(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)
