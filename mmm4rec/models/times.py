"""What systems that read timestamps share: their setting ``use_time``, and which positions of a batch have time."""

from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator

from mmm4rec.errors import UserError
from mmm4rec.models.base import Catalogue, Rows
from mmm4rec.nn.time_signal import TimeMask

#: on: where a domain has timestamps; off: never; require: their lack is an error. YAML reads a bare on as true.
UseTime = Annotated[
    Literal["on", "off", "require"],
    BeforeValidator(lambda v: {True: "on", False: "off"}[v] if isinstance(v, bool) else v),
]


def is_timed(system: str, use_time: UseTime, catalogue: Catalogue) -> bool:
    """Whether a system has a time channel on this domain.

    Raises:
        UserError: timestamps are required and some are missing.
    """
    if use_time == "require" and not catalogue.all_timed:
        raise UserError(
            f"{system}: `use_time: require`, but some events of the domain have no timestamp; "
            "set `use_time: on` or `off`"
        )
    return use_time != "off" and catalogue.has_time


def time_mask(rows: Rows, max_length: int, *, mask_padding: bool = True) -> TimeMask:
    """Where the rows have time; without ``mask_padding`` padded positions count as events at the time 0."""
    position = torch.arange(max_length, device=rows.lengths.device)
    real = (position < rows.lengths[:, None])[:, None] if mask_padding else None
    return TimeMask(real, None if rows.has_time is None else rows.has_time[:, None, None])
