"""Measured rates: a table of what a step, an epoch's beginning and a ranking take, by device, system and stage.

The shipped table is ``rates.csv``; `mmm4rec rates` writes one of any machine. Needs neither torch nor polars.
"""

import csv
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from mmm4rec.errors import UserError
from mmm4rec.io import write_text
from mmm4rec.reporting.runs import to_csv

SHIPPED = Path(__file__).with_name("rates.csv")
#: steps that train nothing, and what is measured of each
STEPS = {"prepare": ("ratings",), "embed": ("texts", "images")}
ENCODER = "hf-hub:timm/ViT-B-16-SigLIP"  # the one that is measured


@dataclass(frozen=True)
class Rate:
    """One measurement: a system in a stage, on a catalogue of so many items. Seconds on a CPU are of its one thread.

    Of one of ``STEPS``, ``rows`` are the ratings, texts or pictures that ``step`` seconds were taken for.

    Attributes:
        device: ``cpu, 1 thread``, or the name of the GPU.
        system: its key, or one of ``STEPS``.
        stage: ``pretrain``, ``indomain``, ``finetune`` (from pre-trained weights, if the system transfers) or
            ``scratch`` (one that transfers, trained from scratch); or what is measured of a step.
        items: of the catalogue.
        rows: training rows of an optimiser step; 0: nothing is trained.
        step: seconds of an optimiser step.
        start: seconds of what each epoch begins with (clusters to be redrawn, say).
        tables: seconds of the item tables, once a ranking.
        ranked: users that were ranked.
        rank: seconds of ranking them, without the item tables.
        memory: peak memory of the process, MiB.
        gpu_memory: peak memory on the GPU, MiB; 0 on a CPU.
        weights: bytes of the weights.
        steps: optimiser steps that were timed.
        version: of the system, in its settings file, or of the step.
        processor: the device's own name.
        torch: its version.
        date: of the measurement.
        commit: of the checkout.
    """

    device: str
    system: str
    stage: str
    items: int
    rows: int
    step: float
    start: float
    tables: float
    ranked: int
    rank: float
    memory: float
    gpu_memory: float
    weights: int
    steps: int
    version: int
    processor: str
    torch: str
    date: str
    commit: str

    @property
    def key(self) -> tuple[str, str]:
        """System and stage."""
        return self.system, self.stage


FIELDS = {field.name: field.type for field in dataclasses.fields(Rate)}


def read_rates(path: Path = SHIPPED) -> list[Rate]:
    """Read a table of rates.

    Raises:
        UserError: there is no such file, or it is no table of rates.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [Rate(**{name: kind(row[name]) for name, kind in FIELDS.items()}) for row in csv.DictReader(file)]  # type: ignore[operator]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `mmm4rec rates --out {path}` measures one") from None
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a table of rates ({error}); write it with `mmm4rec rates`") from None


def write_rates(path: Path, rates: list[Rate]) -> None:
    """Write a table of rates, in the order of device, system, stage and items."""
    ordered = sorted(rates, key=lambda rate: (rate.device, rate.system, rate.stage, rate.items))
    rows = [[f"{v:.4g}" if isinstance(v, float) else v for v in dataclasses.astuple(rate)] for rate in ordered]
    write_text(path, to_csv(list(FIELDS), rows))


def latest(*tables: list[Rate]) -> list[Rate]:
    """Several tables as one: of measurements of the same thing, that of the last table."""
    found = {(rate.device, *rate.key, rate.items): rate for table in tables for rate in table}
    return list(found.values())


def at_size(rates: list[Rate], quantity: str, items: int) -> float:
    """A quantity of a system in a stage, at a catalogue of ``items``: through what was measured at two sizes.

    On a line, but for two: what an epoch begins with grows with a power of the catalogue (a k-means has clusters in
    proportion to it); and a step of pre-training, which touches its own items alone, with the logarithm, from the
    smaller size on.

    Args:
        rates: of one device, system and stage, in order of ``items``; at least one, the outer two are used.
        quantity: an attribute of ``Rate``.
        items: of the catalogue.
    """
    low, high = rates[0], rates[-1]
    first, last = float(getattr(low, quantity)), float(getattr(high, quantity))
    if low.items == high.items:
        return first
    if quantity == "start" and first > 0 and last > 0:
        power = math.log(last / first) / math.log(high.items / low.items)
        return first * (items / low.items) ** max(power, 0.0)
    x, x0, x1 = float(items), float(low.items), float(high.items)
    if quantity == "step" and low.stage == "pretrain":
        x, x0, x1 = math.log(max(x, x0)), math.log(x0), math.log(x1)
    value = first + (last - first) * (x - x0) / (x1 - x0)
    return max(value, first * min(items / low.items, 1.0))  # a steep line meets zero before the catalogue does


def epoch_seconds(rates: list[Rate], items: int, rows: int) -> float:
    """Seconds of an epoch of so many training rows, without validation."""
    a_row = at_size(rates, "step", items) / rates[0].rows if rates[0].rows else 0.0
    return at_size(rates, "start", items) + rows * a_row


def ranking_seconds(rates: list[Rate], items: int, users: int) -> float:
    """Seconds of ranking so many users."""
    return at_size(rates, "tables", items) + users * at_size(rates, "rank", items) / rates[0].ranked
