"""How weights start."""

import math

import torch
from torch import Tensor, nn


def normal_(module: nn.Module, std: float = 0.02) -> None:
    """Linear and embedding weights from N(0, std^2), biases zero, as in RecBole; to be used with ``Module.apply``.

    The row of a padding item is zeroed: no gradient would ever move it.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight.data[module.padding_idx])


def small_biases_(*modules: nn.Module) -> None:
    """Biases from N(0, 0.02^2) for the maps and norms that vectors of missing features pass.

    With biases of zero such a vector stays zero, and dividing it by its length, in a LayerNorm or a cosine, multiplies
    its gradient by 1e6 or more: the scales that Adam keeps would not recover, and the parameters hardly move again.
    """
    for module in modules:
        assert isinstance(module.bias, Tensor), module
        nn.init.normal_(module.bias, std=0.02)


def step_bias(size: int) -> Tensor:
    """[size] biases b as Mamba starts them: step sizes softplus(b) are log-uniform in [1e-3, 1e-1]."""
    dt = torch.empty(size).uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))
