"""DeepCluster: k-means against scikit-learn, the loss against the paper's uniform sampling."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import outcome, small_settings
from torch import Tensor

import dira_deepcluster.kmeans as algorithms
from dira_core import (
    Batch,
    Discriminator,
    Encodings,
    FeaturePass,
    Progress,
    RecipeError,
    Trio,
    View,
)
from dira_core.api import pretrain
from dira_core.optimizer_options import Optimizer
from dira_core.plugins import installed, make
from dira_core.testing import TinyBackbone, TinySource, check, choice
from dira_deepcluster.kmeans import kmeans, nearest, whiten

START = Progress(0, 10, 0, 2)


class Features(FeaturePass):
    """Given ones; counts the passes."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.passes = 0

    def __call__(self) -> Tensor:
        self.passes += 1
        return self.values


def build(backbone: TinyBackbone, n_images: int, **options: Any) -> Discriminator:
    chosen = choice("discriminator", "deepcluster", **options)
    module: Discriminator = make("discriminator", chosen, backbone)
    module.prepare(n_images)
    return module


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(k: int, each: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Return points around k far centres, in mixed order, and the centre each is around."""
    truth = torch.arange(k).repeat(each)
    return 20 * torch.eye(k, dim)[truth] + torch.randn(k * each, dim, generator=seeded()), truth


def inertia(points: Tensor, label: Tensor) -> float:
    groups = [points[label == c] for c in label.unique()]
    return sum(float((group - group.mean(0)).square().sum()) for group in groups)


def batch(index: list[int]) -> Batch:
    image = torch.rand(len(index), 1, 16, 16, generator=seeded())
    return Batch((View(image, image, image, torch.zeros(len(index), 2, 2)),), torch.tensor(index))


@pytest.fixture
def backbone() -> TinyBackbone:
    torch.manual_seed(0)
    return TinyBackbone()


@pytest.mark.parametrize("index", [[7, 2], [11, 0, 4, 9, 5]])
def test_loss_and_gradients_are_log_probabilities_over_the_size_of_the_cluster(
    backbone: TinyBackbone, index: list[int]
) -> None:
    module = build(backbone, 12, clusters=3)
    module.epoch_started(START, Features(blobs(3, 4)[0][torch.arange(12).clamp(max=9)]))
    cluster: list[int] = module.get_buffer("cluster").tolist()
    given = batch(index)
    parameters = [*backbone.parameters(), *module.parameters()]
    objective = module(Encodings(backbone, given))
    gradients = torch.autograd.grad(objective.loss, parameters)

    scores = module.get_submodule("head")(backbone(given.views[0].image)[-1].mean((2, 3)))
    expected = torch.zeros(())
    for row, image in zip(scores, index, strict=True):
        total = sum(math.e**score for score in row)
        share = 3 * sum(other == cluster[image] for other in cluster) / 12
        expected = expected - torch.log(math.e ** row[cluster[image]] / total) / share / len(index)
    assert len({cluster.count(c) for c in cluster}) > 1
    torch.testing.assert_close(objective.loss, expected, atol=1e-5, rtol=1e-5)
    reference = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(gradients, reference, atol=1e-5, rtol=1e-4)


def test_over_all_images_the_weighted_loss_is_the_mean_over_clusters(
    backbone: TinyBackbone,
) -> None:
    module = build(backbone, 10, clusters=4)
    points = torch.cat([torch.zeros(5, 4), torch.eye(4)[1].repeat(4, 1), torch.eye(4)[2:3]])
    module.epoch_started(START, Features(points))  # three differ, so one cluster stays empty
    cluster = module.get_buffer("cluster")
    backbone.eval()
    given = batch(list(range(10)))
    scores = module.get_submodule("head")(backbone(given.views[0].image)[-1].mean((2, 3)))
    each = -scores.log_softmax(1)[torch.arange(10), cluster]
    by_cluster = torch.stack([each[cluster == c].mean() for c in cluster.unique()])
    assert sorted(torch.bincount(cluster).tolist())[-3:] == [1, 4, 5]
    torch.testing.assert_close(module(Encodings(backbone, given)).loss, by_cluster.mean())


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
    found = whiten(features, dim)
    assert found.shape == expected.shape
    torch.testing.assert_close(found @ found.T, expected @ expected.T, atol=1e-4, rtol=0)


def test_directions_without_variance_are_left_out() -> None:
    features = torch.randn(40, 3, generator=seeded()) @ torch.randn(3, 20, generator=seeded(1))
    assert whiten(features, 256).shape == (40, 3)
    assert whiten(torch.ones(40, 20), 256).shape == (40, 0)
    assert kmeans(whiten(torch.ones(40, 20), 256), 4, 3, seeded()).tolist() == [0] * 40


def test_an_epoch_starts_with_new_clusters_of_all_images_and_a_new_classifier(
    backbone: TinyBackbone,
) -> None:
    module, features = build(backbone, 40, clusters=4), Features(blobs(4, 10)[0])
    assert torch.equal(module.get_buffer("cluster"), torch.arange(40) % 4)
    state = torch.get_rng_state()
    module.epoch_started(START, features)
    assert torch.equal(torch.get_rng_state(), state)
    assert features.passes == 1
    truth = blobs(4, 10)[1]
    pairs = set(zip(module.get_buffer("cluster").tolist(), truth.tolist(), strict=True))
    assert len(pairs) == 4
    assert torch.equal(module.get_buffer("weight"), torch.ones(4))
    weight, bias = module.get_parameter("head.weight"), module.get_parameter("head.bias")
    before = weight.clone()
    assert weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert not bias.any()
    with torch.no_grad():
        bias += 1
    module.epoch_started(START, features)
    assert torch.equal(weight, before)
    assert not bias.any()
    module.epoch_started(Progress(5, 10, 1, 2), features)
    assert not torch.equal(weight, before)


@pytest.mark.parametrize(("n_images", "clusters"), [(2, 2), (19, 2), (5000, 500), (10**6, 10_000)])
def test_the_number_of_clusters_follows_the_data(
    backbone: TinyBackbone, n_images: int, clusters: int
) -> None:
    module = build(backbone, n_images)
    assert module.get_parameter("head.weight").shape == (clusters, backbone.channels[-1])
    assert module.get_buffer("cluster").shape == (n_images,)


def test_more_clusters_than_images_are_refused(backbone: TinyBackbone) -> None:
    with pytest.raises(RecipeError, match="got 20 clusters for 16 images"):
        build(backbone, 16, clusters=20)


def test_evaluation_changes_no_buffer(backbone: TinyBackbone) -> None:
    module = build(backbone, 12).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module(Encodings(backbone.eval(), batch([3, 1, 2])))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Interrupting:
    """A display that presses Ctrl-C after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def stepped(self, progress: Progress, metrics: Mapping[str, float], speed: float) -> None:
        if progress.step == self.steps:
            raise KeyboardInterrupt

    def said(self, message: str) -> None:
        """Ignore it."""


def run(folder: Path, stop: int = -1, resume: bool = False) -> None:
    torch.manual_seed(0)
    backbone = TinyBackbone()
    chosen = choice("discriminator", "deepcluster", clusters=5)
    trio = Trio(backbone, make("discriminator", chosen, backbone))
    settings = small_settings(
        train={"epochs": 2}, checkpoint={"every_steps": 1}, log={"probe": False}
    )
    pretrain(trio, TinySource(24), settings, folder, resume, Interrupting(stop))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder)
    return folder


@pytest.mark.parametrize("steps", [2, 6, 9])
def test_a_run_stopped_in_or_between_epochs_and_resumed_equals_one_that_was_not(
    tmp_path: Path, whole: Path, steps: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop=steps)
    run(tmp_path / "stopped", resume=True)
    assert outcome(tmp_path / "stopped") == outcome(whole)


def test_the_default_optimizer_is_the_public_codes() -> None:
    defaults = installed().find("discriminator", "deepcluster").defaults
    optimizer = Optimizer(**defaults["optimizer"])
    assert (optimizer.name, optimizer.lr, optimizer.lr_batch) == ("sgd", 0.05, 256)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 1e-5)
    assert optimizer.schedule == "constant"


def test_the_contract_is_kept() -> None:
    assert [wrong for _, wrong in check("discriminator", "deepcluster")] == [None] * 3


def test_offering_the_component_does_not_import_torch() -> None:
    code = (
        "import sys, dira_deepcluster; list(dira_deepcluster.dira_discriminators());"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
