"""Neighbours, spread and rank against plain loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dira_core.data.cutting import whole_images
from dira_core.data.phantom import PhantomSource
from dira_core.metrics import embedding_stats, features, knn_accuracy, probe_split
from dira_core.roles import Backbone
from dira_core.source_options import PhantomOptions


def plain_knn(z: Tensor, labels: Tensor, train: Tensor, k: int) -> float:
    """Wu et al., section 3.4, image by image."""
    right = total = 0
    neighbours = [i for i in range(len(z)) if train[i]]
    for i in range(len(z)):
        if train[i]:
            continue
        near = [(float(z[i] @ z[j] / (z[i].norm() * z[j].norm())), j) for j in neighbours]
        votes = [0.0] * (int(labels.max()) + 1)
        for cosine, j in sorted(near, reverse=True)[:k]:
            votes[int(labels[j])] += math.exp(cosine / 0.07)
        right += votes.index(max(votes)) == int(labels[i])
        total += 1
    return right / total


@pytest.mark.parametrize("k", [1, 5, 20, 1000])
def test_knn_equals_a_plain_loop(k: int) -> None:
    torch.manual_seed(k)
    labels = torch.randint(0, 3, (90,))
    z = torch.randn(90, 6, dtype=torch.float64) + 1.5 * nn.functional.one_hot(labels, 6)
    train = torch.rand(90) < 0.5
    expected = plain_knn(z, labels, train, k)
    assert 0.4 < expected < 1
    assert knn_accuracy(z, labels, train, k) == pytest.approx(expected)


def test_knn_is_perfect_on_separate_clusters_and_chance_on_noise() -> None:
    torch.manual_seed(0)
    labels = torch.arange(600) % 4
    noise, train = torch.randn(600, 16), probe_split(600, 0)
    assert knn_accuracy(5 * nn.functional.one_hot(labels, 16) + 0.1 * noise, labels, train) == 1
    assert 0.15 < knn_accuracy(noise, labels, train) < 0.35


def test_knn_needs_both_parts() -> None:
    with pytest.raises(ValueError, match="neighbours"):
        knn_accuracy(torch.randn(4, 2), torch.zeros(4).long(), torch.ones(4, dtype=torch.bool))


def test_one_point_is_collapsed() -> None:
    found = embedding_stats(torch.ones(32, 8) * torch.rand(32, 1).add(0.5))
    assert float(found["std"]) == pytest.approx(0, abs=1e-5)
    assert float(found["rank"]) == pytest.approx(1, abs=1e-3)


def test_a_line_through_the_origin_has_rank_one() -> None:
    signs = torch.tensor([1.0, -1.0] * 16)[:, None]
    found = embedding_stats(signs * torch.tensor([[1.0, 2.0, 3.0]]))
    assert float(found["rank"]) == pytest.approx(1, abs=1e-3)


def test_an_orthonormal_basis_has_full_rank() -> None:
    basis = torch.linalg.qr(torch.randn(12, 12, generator=torch.manual_seed(0)))[0]
    assert float(embedding_stats(basis)["rank"]) == pytest.approx(12, rel=1e-5)


def test_two_unequal_directions_have_the_entropy_of_their_shares() -> None:
    """n copies of e1 and m of e2: singular values sqrt(n) and sqrt(m)."""
    z = torch.eye(5)[[0] * 9 + [1] * 4]
    share = torch.tensor([3.0, 2.0]) / 5
    expected = math.exp(-float((share * share.log()).sum()))
    assert float(embedding_stats(z)["rank"]) == pytest.approx(expected, rel=1e-4)


def test_a_round_gaussian_is_healthy() -> None:
    found = embedding_stats(torch.randn(2000, 32, generator=torch.manual_seed(0)))
    assert float(found["std"]) == pytest.approx(1, abs=0.02)
    assert float(found["rank"]) > 31


def test_zeros_are_reported_as_numbers() -> None:
    found = embedding_stats(torch.zeros(4, 3))
    assert all(value.isfinite() for value in found.values())


def test_stats_are_float32_without_gradient_under_autocast() -> None:
    z = torch.randn(64, 16, generator=torch.manual_seed(0), requires_grad=True)
    plain = embedding_stats(z)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = embedding_stats(z)
    for name, value in mixed.items():
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert value == plain[name]


def test_the_split_halves_and_a_sample_keeps_its_side() -> None:
    split = probe_split(2000, 3)
    assert 0.45 < float(split.float().mean()) < 0.55
    assert torch.equal(split[:100], probe_split(100, 3))
    assert not torch.equal(split, probe_split(2000, 4))


class Small(Backbone):
    channels, strides, in_channels, dims = (4,), (2,), 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.norm(self.conv(images))]


def test_features_are_pooled_maps_in_evaluation_mode_and_leave_no_trace() -> None:
    torch.manual_seed(0)
    source, backbone = PhantomSource(PhantomOptions(n=80, size=32)), Small()
    backbone.norm.running_mean += 0.3
    backbone.conv.eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    indices = list(range(5, 75))
    found = features(backbone, source, 24, 1, indices, torch.device("cpu"))
    assert [backbone.training, backbone.norm.training, backbone.conv.training] == [
        True,
        True,
        False,
    ]
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not found.requires_grad
    images = whole_images(source, indices, 24, 1)
    with torch.no_grad():
        maps = backbone.eval()(images)[-1]
    assert torch.allclose(found, maps.mean((2, 3)), atol=1e-6)
