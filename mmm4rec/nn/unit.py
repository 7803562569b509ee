"""Vectors of length one."""

import torch
from torch import Tensor

FLOOR = 1e-12  # of a vector's length when it is divided by it


def unit(x: Tensor) -> Tensor:
    """Vectors [..., D] divided by their length; one shorter than 1e-12 counts as zero and gets no gradient.

    A floor under the length would multiply the gradient of a zero vector, such as a masked image's, by 1e12.
    """
    length = x.norm(dim=-1, keepdim=True)
    return x / length.masked_fill(length < FLOOR, torch.inf)
