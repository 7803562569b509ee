"""Where a result comes from: versions, machine, commit, and a hash of the code that made it."""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmm4rec import __version__
from mmm4rec.config import read_system
from mmm4rec.errors import UserError
from mmm4rec.io import read_json
from mmm4rec.versions import VERSIONS

PACKAGES = ("torch", "numpy", "pyarrow", "safetensors", "pydantic", "polars", "open_clip_torch", "transformers")
UNKNOWN = "unknown"  # of a run made before it was recorded
PACKAGE = Path(__file__).resolve().parent

log = logging.getLogger(__name__)


def environment(modules: list[str], device: str) -> dict[str, Any]:
    """What a result was made with, for ``environment.json``.

    Args:
        modules: modules and packages of mmm4rec whose code the result depends on, e.g. ``mmm4rec.training``.
        device: kind of the device it was made on, ``cpu`` or ``cuda``.
    """
    import torch  # here, so that `check` is quick

    cuda = device == "cuda"
    return {
        "mmm4rec": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "code": {"modules": modules, "sha256": code_hash(modules)},
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cuda": torch.version.cuda if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def code_hash(modules: list[str]) -> str:
    """Sha256 over the source of modules; a package counts with everything in it."""
    files = {path for name in modules for path in _sources(name)}
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.relative_to(PACKAGE).as_posix()):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def commit() -> str | None:
    """The checkout's commit, with ``-dirty`` behind it if files differ; None outside a checkout or without git.

    Frozen results are no part of what makes results: Snakemake removes a ``provenance.json`` that is to be made again.
    """
    if not (PACKAGE.parent / "pyproject.toml").exists():  # installed: a repository around it is somebody else's
        return None
    try:
        name = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)published")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{name}-dirty" if changed else name


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    return done.stdout.strip()


def summary(runs: Sequence[Path], config: dict[str, Any]) -> dict[str, Any]:
    """Where results come from as a whole: date, commit, hash of the configuration, and what the runs were made with.

    Args:
        runs: run folders of pre-training and fine-tuning.
        config: the configuration.
    """
    environments = [read_json(run / "environment.json") for run in runs]
    text = json.dumps(config, sort_keys=True, default=str)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "dates_of_runs": sorted({e.get("date", UNKNOWN) for e in environments}),
        "commit": commit(),
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "seeds": sorted({e["seed"] for e in environments}),
        "commits_of_runs": sorted({str(e["commit"]) for e in environments}),
        "devices": sorted({str(e["device"]) for e in environments}),
        "platforms": sorted({e["platform"] for e in environments}),
        "mmm4rec": sorted({e.get("mmm4rec", UNKNOWN) for e in environments}),
        "python": sorted({e.get("python", UNKNOWN) for e in environments}),
        "cuda": sorted({e["cuda"] for e in environments if e.get("cuda")}),
        "packages": _versions(environments),
        "config": json.loads(text),
    }


def _versions(environments: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Every version that any run was made with, by package."""
    found: dict[str, set[str]] = {}
    for environment in environments:
        for name, version in environment["packages"].items():
            found.setdefault(name, set()).add(version)
    return {name: sorted(versions) for name, versions in sorted(found.items())}


def check(run: Path) -> bool:
    """Whether a finished run fits the checkout; if its code has changed while its versions stand, a warning says so.

    Args:
        run: run folder of pre-training or fine-tuning.
    """
    made, settings = read_json(run / "environment.json"), read_json(run / "config.json")
    step = "finetune" if "domain" in settings else "pretrain"
    try:
        current = [VERSIONS[step], read_system(settings["system"]).version]
    except UserError:  # a system of another checkout: nothing to compare with
        return True
    if current != settings["version"] or made["code"]["sha256"] == code_hash(made["code"]["modules"]):
        return True
    log.warning(
        "%s was made with other code (%s) than this checkout's, though its versions are the same; if the change "
        "alters results, raise VERSIONS[%r] in mmm4rec/versions.py or `version` in config/systems/%s.yaml",
        run,
        made["commit"] or made["mmm4rec"],
        step,
        settings["system"],
    )
    return False


def _processor() -> str:
    """The processor's name, where the system tells it, with family and model: virtual machines shorten names."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    said: dict[str, str] = {}
    for key, _, value in (line.partition(":") for line in lines):
        said.setdefault(key.strip(), value.strip())  # of the first processor
    if "model name" not in said:
        return platform.processor() or platform.machine()
    numbers = [f"{key.removeprefix('cpu ')} {said[key]}" for key in ("cpu family", "model") if key in said]
    return said["model name"] + (f" ({', '.join(numbers)})" if numbers else "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sources(module: str) -> list[Path]:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
