"""How weights start."""

from torch import nn


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
