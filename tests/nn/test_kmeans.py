import pytest
import torch

from mmm4rec.nn import kmeans as module
from mmm4rec.nn.kmeans import kmeans, means, nearest


@pytest.fixture
def points():
    return torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))


def loss(points, centroids, labels):
    chosen = torch.stack([c[label] for c, label in zip(centroids, labels, strict=True)])
    return float((points - chosen).square().sum())


@pytest.mark.parametrize("at_once", [1, 70, 2**20])
def test_nearest_is_the_smallest_distance_however_many_are_held_at_a_time(points, monkeypatch, at_once):
    monkeypatch.setitem(module.DISTANCES_AT_ONCE, "cpu", at_once)
    centroids = points[:, :7] + 0.1
    assert torch.equal(nearest(points, centroids), torch.cdist(points, centroids).argmin(-1))


def test_means_are_those_of_a_loop_and_an_unchosen_centroid_stays(points):
    centroids = torch.full((2, 4, 3), 9.0)
    labels = torch.randint(3, (2, 50), generator=torch.Generator().manual_seed(1))  # nobody chooses the last
    moved = means(points, labels, centroids)
    for s in range(2):
        for c in range(3):
            torch.testing.assert_close(moved[s, c], points[s][labels[s] == c].mean(0))
    assert torch.equal(moved[:, 3], centroids[:, 3])


def test_every_pass_brings_the_centroids_nearer(points):
    losses = []
    for passes in range(6):
        torch.manual_seed(2)
        losses.append(loss(points, *kmeans(points, 5, passes)))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_the_same_draw_gives_the_same_result(points):
    torch.manual_seed(3)
    first = kmeans(points, 5, 3)
    second = kmeans(points, 5, 3)
    torch.manual_seed(3)
    again = kmeans(points, 5, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], second[0])


def test_as_many_centroids_as_points_are_the_points(points):
    centroids, labels = kmeans(points, 50, 2)
    assert loss(points, centroids, labels) < 1e-8
    assert all(len(row.unique()) == 50 for row in labels)


def test_one_centroid_is_the_mean(points):
    centroids, labels = kmeans(points, 1, 1)
    torch.testing.assert_close(centroids, points.mean(1, keepdim=True))
    assert not labels.any()
