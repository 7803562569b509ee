"""Calls of Snakemake as a user makes them."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "config/examples/own_domain.yaml"


def command(folder, *arguments, example=EXAMPLE, **changes):
    """A call of Snakemake in ``folder``, with the paper's configuration, an example and further changes over it."""
    own = folder / "changes.yaml"
    own.write_text(yaml.safe_dump(changes))
    configs = [ROOT / "config.yaml", *([example] if example else []), own]
    where = ["--snakefile", ROOT / "Snakefile", "--directory", folder]
    arguments = [*arguments, *where, "--configfile", *configs, "--cores", "1"]
    return [sys.executable, "-m", "snakemake", *map(str, arguments)]


def snakemake(folder, *arguments, **changes):
    """Its return code and everything it printed."""
    done = subprocess.run(command(folder, *arguments, **changes), capture_output=True, text=True, cwd=folder)
    return done.returncode, done.stdout + done.stderr


def planned(folder, *targets, **changes):
    """Jobs a dry run would start: {rule: number}."""
    code, output = snakemake(folder, "--dry-run", *targets, **changes)
    assert code == 0, output
    table = output.rpartition("Job stats:")[2].partition("total")[0]
    return {name: int(number) for name, number in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE) if name != "all"}
