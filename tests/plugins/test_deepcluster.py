"""DeepCluster: the loss against the paper's uniform sampling of clusters, epochs, resuming."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import seen
from parts import outcome, small_settings
from tensors import blobs, seeded
from torch import Tensor

from dira_core import (
    Batch,
    Discriminator,
    Encodings,
    FeaturePass,
    Progress,
    RecipeError,
    Trio,
)
from dira_core.api import pretrain
from dira_core.optimizer_options import Optimizer
from dira_core.plugins import installed, make
from dira_core.testing import TinyBackbone, TinySource, choice

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


def batch(index: list[int]) -> Batch:
    image = torch.rand(len(index), 1, 16, 16, generator=seeded())
    return seen(image, index=torch.tensor(index))


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


def test_an_epoch_starts_with_new_clusters_of_all_images_and_a_new_classifier(
    backbone: TinyBackbone,
) -> None:
    module, features = build(backbone, 40, clusters=4, pca=3), Features(blobs(4, 10)[0])
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


def test_draws_of_an_epoch_are_those_of_the_seed_of_the_run(backbone: TinyBackbone) -> None:
    def started(seed: int) -> Tensor:
        torch.manual_seed(seed)  # as `prepare` finds it in a run
        module = build(backbone, 40, clusters=4, pca=3)
        module.epoch_started(START, Features(blobs(4, 10)[0]))
        return module.get_parameter("head.weight")

    assert torch.equal(started(1), started(1))
    assert not torch.equal(started(1), started(2))
