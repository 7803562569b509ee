"""The k-core of a table of events: every user and every item keeps at least k events."""

import numpy as np
from numpy.typing import NDArray


def k_core(users: NDArray[np.integer], items: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
    """Mark the events of the k-core, the largest set in which every user and every item has at least ``k`` events.

    Users and items are filtered together until nothing changes; the largest such set is unique, so the order of
    filtering does not matter. Repeated events of the same user and item count each.

    Args:
        users: codes 0, 1, … of the users, ``[E]``.
        items: codes 0, 1, … of the items, ``[E]``.
        k: events that a user and an item need; 0 keeps everything.

    Returns:
        ``[E]``, true for the events that stay.
    """
    assert users.shape == items.shape, (users.shape, items.shape)
    kept, u, i = np.arange(len(users)), users.astype(np.intp), items.astype(np.intp)  # `take` would cast every time
    of_user, of_item = np.bincount(u), np.bincount(i)
    while True:
        stays = (of_user >= k).take(u) & (of_item >= k).take(i)
        goes = np.flatnonzero(~stays)
        if not len(goes):
            break
        of_user -= np.bincount(u.take(goes), minlength=len(of_user))
        of_item -= np.bincount(i.take(goes), minlength=len(of_item))
        rows = np.flatnonzero(stays)
        kept, u, i = kept.take(rows), u.take(rows), i.take(rows)
    mask = np.zeros(len(users), dtype=bool)
    mask[kept] = True
    return mask
