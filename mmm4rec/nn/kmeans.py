"""k-means where the model is: in torch, with the same result every time, and no matrix of all distances.

Shapes: S separate problems (sub-spaces of a product quantiser, else 1), n points, k centroids, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

#: distances held at a time: 16 MiB of them, or 256 MiB on a GPU
DISTANCES_AT_ONCE = {"cpu": 2**22, "cuda": 2**26}


@torch.no_grad()
def kmeans(points: Tensor, k: int, passes: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from k points drawn by torch's global generator.

    The cost is S * passes * n * k * D multiply-adds.

    Args:
        points: [S, n, D].
        k: centroids, at most n.
        passes: how often all points choose their centroid and all centroids move.

    Returns:
        Centroids [S, k, D]; the nearest of them to each point, [S, n] int64.
    """
    centroids = start(points, k)
    for _ in range(passes):
        centroids = means(points, nearest(points, centroids), centroids)
    return centroids, nearest(points, centroids)


def start(points: Tensor, k: int) -> Tensor:
    """The same k of the n points for every problem, [S, k, D]; drawn on the CPU, so that every device has the same."""
    return points[:, torch.randperm(points.shape[1])[:k].to(points.device)]


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid [S, n] int64 of each point, in chunks of points."""
    distances_a_point = centroids.shape[0] * centroids.shape[1]
    chunk = max(1, DISTANCES_AT_ONCE[points.device.type] // distances_a_point)
    lengths = centroids.square().sum(-1)[:, None]
    # |x - c|^2 but for |x|^2, which is the same for all centroids
    parts = [torch.baddbmm(lengths, part, centroids.mT, alpha=-2).argmin(-1) for part in points.split(chunk, 1)]
    return torch.cat(parts, 1)


def means(points: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Mean [S, k, D] of the points of each label; a centroid that no point chose stays where it is.

    Sums go along sorted labels: additions in whatever order a GPU happens to make them would differ between runs.
    """
    S, k, _ = centroids.shape
    flat = (labels + k * torch.arange(S, device=labels.device)[:, None]).flatten()
    ordered, order = flat.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(S * k + 1, device=labels.device))
    moved = F.embedding_bag(order, points.flatten(0, 1), starts, mode="mean", include_last_offset=True)
    return torch.where(starts.diff()[:, None] > 0, moved, centroids.flatten(0, 1)).view_as(centroids)
