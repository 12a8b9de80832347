"""K-means and whitening against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from tensors import blobs, seeded
from torch import Tensor

from dira_core import clusters as algorithms
from dira_core import kmeans, pca_whiten
from dira_core.clusters import nearest


def inertia(points: Tensor, label: Tensor) -> float:
    groups = [points[label == c] for c in label.unique()]
    return sum(float((group - group.mean(0)).square().sum()) for group in groups)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clusters_of_separable_points_are_those_of_scikit_learn(seed: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    points, truth = blobs(7, 30)
    label = kmeans(points, 7, 20, seeded(seed))
    reference = cluster.KMeans(7, n_init=10, random_state=0).fit(points.numpy())
    assert inertia(points, label) == pytest.approx(reference.inertia_, rel=1e-5)
    pairs = {(int(a), int(b)) for a, b in zip(label, truth, strict=True)}
    assert len(pairs) == 7


def test_on_a_cloud_clusters_are_nearly_as_tight_as_those_of_scikit_learn() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    points = torch.rand(500, 2, generator=seeded())
    found = inertia(points, kmeans(points, 12, 30, seeded()))
    assert found < 1.1 * cluster.KMeans(12, n_init=10, random_state=0).fit(points.numpy()).inertia_


def test_an_empty_cluster_restarts_from_a_point_that_was_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points, truth = blobs(4, 10)
    monkeypatch.setattr(algorithms, "first_centres", lambda *_: [0, 0, 1, 2])
    label = kmeans(points + 100, 4, 10, seeded())
    assert len(label.unique()) == 4
    assert len({(int(a), int(b)) for a, b in zip(label, truth, strict=True)}) == 4


def test_each_point_ends_in_the_cluster_whose_mean_is_nearest() -> None:
    points = torch.rand(14, 2, generator=seeded()) + 1
    label = kmeans(points, 6, 30, seeded())
    assert torch.bincount(label).min() == 1  # one has a cluster of its own
    means = torch.stack([points[label == c].mean(0) for c in range(6)])
    assert torch.equal((points[:, None] - means).square().sum(2).argmin(1), label)


def test_fewer_points_that_differ_than_clusters_make_fewer_clusters() -> None:
    points = torch.eye(3).repeat(4, 1)
    label = kmeans(points, 6, 5, seeded())
    assert torch.equal(label.view(4, 3), label[:3].expand(4, 3))
    assert len(label.unique()) == 3


def test_the_first_centres_are_drawn_by_their_squared_distance() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0]])
    met = torch.zeros(3, 3)
    for seed in range(1500):
        first, second = algorithms.first_centres(points, 2, seeded(seed))
        met[first, second] += 1
    share = met / met.sum(1, keepdim=True)
    squared = (points - points.T).square()
    torch.testing.assert_close(share, squared / squared.sum(1, keepdim=True), atol=0.06, rtol=0)


def test_distances_are_exact_and_in_pieces_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points, centres = torch.rand(50, 4), torch.rand(6, 4)
    label, distance = nearest(points, centres)
    expected = (points[:, None] - centres[None]).square().sum(2).min(1)
    assert torch.equal(label, expected.indices)
    torch.testing.assert_close(distance, expected.values, atol=1e-6, rtol=1e-5)
    monkeypatch.setattr(algorithms, "DISTANCES_AT_ONCE", 20)
    pieces = nearest(points, centres)
    assert torch.equal(pieces[0], label)
    torch.testing.assert_close(pieces[1], distance)


@pytest.mark.parametrize("dim", [3, 5, 99])
def test_whitened_features_are_those_of_scikit_learn_up_to_signs(dim: int) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    features = torch.randn(60, 5, generator=seeded()) @ torch.randn(5, 5, generator=seeded(1)) + 3
    reference = decomposition.PCA(min(dim, 5), whiten=True).fit_transform(features.double().numpy())
    expected = torch.nn.functional.normalize(torch.from_numpy(reference).float())
    found = pca_whiten(features, dim)
    assert found.shape == expected.shape
    torch.testing.assert_close(found @ found.T, expected @ expected.T, atol=1e-4, rtol=0)


def test_directions_without_variance_are_left_out() -> None:
    features = torch.randn(40, 3, generator=seeded()) @ torch.randn(3, 20, generator=seeded(1))
    assert pca_whiten(features, 256).shape == (40, 3)
    assert pca_whiten(torch.ones(40, 20), 256).shape == (40, 0)
    assert kmeans(pca_whiten(torch.ones(40, 20), 256), 4, 3, seeded()).tolist() == [0] * 40
