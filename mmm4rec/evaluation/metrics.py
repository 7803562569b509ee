"""recall@k and ndcg@k from ranks, one relevant item a user."""

import numpy as np
import numpy.typing as npt

METRICS = ("recall@10", "recall@50", "ndcg@10", "ndcg@50")


def per_user(metric: str, ranks: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A metric's value for every user.

    recall@k = [rank <= k]; ndcg@k = [rank <= k] / log2(1 + rank), the ideal gain being 1.

    Args:
        metric: ``recall@k`` or ``ndcg@k``.
        ranks: [U] ranks of the held-out item, 1 is best.

    >>> per_user("ndcg@10", [1, 3, 11]).tolist()
    [1.0, 0.5, 0.0]
    """
    name, _, k = metric.partition("@")
    rank = np.asarray(ranks, dtype=np.float64)
    assert (rank >= 1).all(), "ranks count from 1"
    hit = (rank <= int(k)).astype(np.float64)
    if name == "recall":
        return hit
    assert name == "ndcg", metric
    return hit / np.log2(1 + rank)


def summarise(ranks: npt.ArrayLike, metrics: tuple[str, ...] = METRICS) -> dict[str, float]:
    """Means over the users.

    >>> summarise([1, 3, 11, 60])
    {'recall@10': 0.5, 'recall@50': 0.75, 'ndcg@10': 0.375, 'ndcg@50': 0.44473573641278247}
    """
    return {metric: float(per_user(metric, ranks).mean()) for metric in metrics}
