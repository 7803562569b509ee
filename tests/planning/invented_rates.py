"""Rates with known values."""

import dataclasses

from mmm4rec.planning.rates import Rate


def rate(items, **values):
    """A rate of a system that does nothing."""
    fields = {f.name: f.type(0) for f in dataclasses.fields(Rate)}
    return Rate(**fields | {"stage": "finetune", "rows": 100, "ranked": 10, "items": items} | values)
