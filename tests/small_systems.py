"""Sizes at which every system is built in a moment: what changes of its settings file, by the class that it is of."""

import torch

from mmm4rec.config import read_system, system_keys
from mmm4rec.models.base import Catalogue, Rows, System, build

SMALL = {
    "pop": {},
    "sasrec": {"hidden_size": 16, "inner_size": 32, "heads": 2, "max_length": 6},
    "fdsa": {"hidden_size": 16, "inner_size": 32, "heads": 2, "max_length": 6},
    "s3rec": {"hidden_size": 16, "inner_size": 32, "heads": 2, "max_length": 6},
    "unisrec": {"hidden_size": 16, "inner_size": 32, "heads": 2, "max_length": 6, "experts": 3},
    "zesrec": {"hidden_size": 16, "inner_size": 32, "heads": 2, "max_length": 6},
    "vqrec": {"digits": 8, "values": 4, "hidden_size": 16, "inner_size": 32, "heads": 2, "max_length": 6},
    "mmsrec": {"hidden_size": 16, "inner_size": 32, "heads": 2, "max_length": 6},
    "missrec": {
        "hidden_size": 16,
        "inner_size": 32,
        "heads": 2,
        "max_length": 6,
        "pretrain_interest_share": 0.3,  # of so few items, so that there is more than one interest
    },
    "mamba4rec": {"hidden_size": 16, "inner_size": 32, "state_size": 4, "max_length": 6},
    "tim4rec": {"hidden_size": 16, "inner_size": 32, "state_size": 4, "head_size": 8, "max_length": 6},
    "bsarec": {"hidden_size": 16, "inner_size": 32, "heads": 2, "max_length": 6},
    "m3rec": {"hidden_size": 16, "inner_size": 32, "state_size": 4, "max_length": 6},
    "mmm4rec": {"hidden_size": 16, "inner_size": 16, "state_size": 4, "head_size": 8, "max_length": 6},
}
N_ITEMS = 12
LEARNING = [key for key in system_keys() if read_system(key).finetune]


def catalogue(
    n_items: int = N_ITEMS, *, times: bool = True, seed: int = 0, fewer_words: bool = False, metadata: bool = False
) -> Catalogue:
    """A catalogue with everything; the last item lacks text, the last two lack an image.

    With ``fewer_words`` it has features of texts with words left out too, of all but the first three items. With
    ``metadata`` it has 9 attributes: an item a brand (1 to 3), a category that all share (4) and, every other item, one
    more (5 to 9); the last item lacks them all.
    """
    number = torch.arange(n_items + 1)
    attributes = torch.stack([1 + number % 3, torch.full_like(number, 4), (5 + number % 5) * (number % 2)], dim=1)
    attributes[[0, -1]] = 0
    draw = torch.Generator().manual_seed(seed)
    has_text = torch.ones(n_items + 1, dtype=torch.bool)
    has_image = has_text.clone()
    has_text[[0, -1]] = False
    has_image[[0, -1, -2]] = False
    text = torch.randn(n_items + 1, 10, generator=draw) * has_text[:, None]
    lost = 0.5 * torch.randn(n_items + 1, 10, generator=torch.Generator().manual_seed(seed + 1)) * has_text[:, None]
    lost[1:4] = 0
    return Catalogue(
        n_items=n_items,
        text=text,
        image=torch.randn(n_items + 1, 8, generator=draw) * has_image[:, None],
        has_text=has_text,
        has_image=has_image,
        has_time=times,
        all_timed=times,
        popularity=torch.arange(n_items + 1),
        text_dropped=text + lost if fewer_words else None,
        attributes=attributes if metadata else None,
    )


def small_settings(key: str, **settings) -> dict:
    """A system's settings at its small size, with further changes."""
    system = read_system(key)
    assert system.model in SMALL, f"SMALL in {__file__} is to have a small size of {system.model}"
    return system.settings | SMALL[system.model] | settings


def small(
    key: str, known: Catalogue | None = None, *, pretraining: bool = False, perturbed: float = 0.0, **settings
) -> System:
    """A system at its small size, always with the same weights; ``perturbed`` off their start, where much is zero."""
    torch.manual_seed(0)
    system = build(
        read_system(key).model, small_settings(key, **settings), known or catalogue(), pretraining=pretraining
    )
    for parameter in system.parameters():
        parameter.data += perturbed * torch.randn_like(parameter)
    return system


def rows(items: list[list[int]], targets: list[int] | None = None, *, max_length: int = 6) -> Rows:
    """Right-padded rows; their events are days apart, more and more of them."""
    lengths = torch.tensor([sum(i > 0 for i in row) for row in items])
    day = torch.arange(max_length) ** 2 * 86_400 + 1_500_000_000
    return Rows(
        torch.tensor(items),
        lengths,
        torch.tensor(targets or [1] * len(items)),
        times=torch.where(torch.arange(max_length) < lengths[:, None], day, 0),
        has_time=torch.ones(len(items), dtype=torch.bool),
    )
