"""What systems that read timestamps share: their setting ``use_time``, and the times of a batch."""

from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor

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


def time_path(rows: Rows, *, mask_padding: bool = True) -> tuple[Tensor, TimeMask]:
    """Timestamps [B, L'] that the rows' time signals are made of, and where the rows have time.

    L' = L, the longest row: a signal is 0 in the padding. Without ``mask_padding`` padded positions count as events at
    the time 0, and L' = max_length.
    """
    assert rows.times is not None, "the model was built for a domain with timestamps"
    known = None if rows.has_time is None else rows.has_time[:, None, None]
    if not mask_padding:
        return rows.times, TimeMask(None, known)
    length = rows.items.shape[1]
    position = torch.arange(length, device=rows.lengths.device)
    return rows.times[:, :length], TimeMask((position < rows.lengths[:, None])[:, None], known)
