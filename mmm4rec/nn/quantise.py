"""Optimised product quantisation (Ge, He, Ke & Sun, CVPR 2013): vectors to a few small integers.

Shapes: n vectors of width F, M digits a code, K values a digit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmm4rec.nn.kmeans import means, nearest, start

MOST_FITTED = 2**16  # vectors that the quantiser is fitted on; more make it no better


class ProductQuantiser:
    """Centre and rotate vectors, cut them into M pieces, and call each piece by the nearest of K centroids.

    The rotation is fitted with the centroids, by turns: centroids to the rotated vectors (one pass of k-means), then
    the rotation that brings the vectors nearest to their decoded selves (orthogonal Procrustes). It starts at random,
    so that no piece begins with most of the variance. Vectors whose width is no multiple of M are padded with zeros,
    which the rotation mixes in.
    """

    @torch.no_grad()
    def __init__(self, vectors: Tensor, digits: int, values: int, rotations: int = 25, passes: int = 5) -> None:
        """Fit to ``vectors``, or to a sample of them; torch's global generator draws.

        Args:
            vectors: [n, F] float32, n at least 1.
            digits: M.
            values: K, at most n.
            rotations: turns of centroids and rotation.
            passes: of k-means after the last rotation.
        """
        self.digits = digits
        if len(vectors) > MOST_FITTED:
            vectors = vectors[torch.randperm(len(vectors))[:MOST_FITTED].to(vectors.device)]
        self.centre = vectors.mean(0)
        vectors = self._centred(vectors)
        width = vectors.shape[1]
        self.rotation = torch.linalg.qr(torch.randn(width, width))[0].to(vectors.device)
        pieces = self._pieces(vectors)
        self.centroids = start(pieces, values)
        for _ in range(rotations):
            codes = nearest(pieces, self.centroids)
            self.centroids = means(pieces, codes, self.centroids)
            u, _, v = torch.linalg.svd(vectors.T @ self._decoded(codes))
            self.rotation = u @ v
            pieces = self._pieces(vectors)
        for _ in range(passes):
            self.centroids = means(pieces, nearest(pieces, self.centroids), self.centroids)

    @torch.no_grad()
    def codes(self, vectors: Tensor) -> Tensor:
        """Codes [n, M] int64, in 0..K-1, of vectors [n, F] float32."""
        parts = [nearest(self._pieces(self._centred(part)), self.centroids) for part in vectors.split(MOST_FITTED)]
        return torch.cat(parts, 1).T.contiguous()

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Vectors [n, F] that codes [n, M] stand for."""
        return (self._decoded(codes.T) @ self.rotation.T)[:, : len(self.centre)] + self.centre

    def _centred(self, vectors: Tensor) -> Tensor:
        return F.pad(vectors - self.centre, (0, -vectors.shape[1] % self.digits))

    def _pieces(self, centred: Tensor) -> Tensor:
        """[M, n, F / M] of the rotated vectors."""
        return (centred @ self.rotation).unflatten(1, (self.digits, -1)).transpose(0, 1).contiguous()

    def _decoded(self, codes: Tensor) -> Tensor:
        """Rotated vectors [n, F] of codes [M, n]."""
        width = self.centroids.shape[-1]
        pieces = self.centroids.gather(1, codes[..., None].expand(-1, -1, width))
        return pieces.transpose(0, 1).flatten(1)
