"""Measuring leaves the model as it was, and the probe says what features are worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parts import small_settings, small_trio
from torch import Tensor, nn

from dira_core.data.cutting import whole_images
from dira_core.evaluate import HELD_OUT_EPOCH, SourceFeatures, evaluating, held_out, probe
from dira_core.game import Game
from dira_core.precision import Precision
from dira_core.roles import Backbone
from dira_core.testing import TinyBackbone, TinySource

CPU = torch.device("cpu")


class Brightness(Backbone):
    """Maps of the image's mean: one class of `TinySource` is brighter than the other."""

    channels, strides, in_channels, dims = (2,), (1,), 1, 2

    def forward(self, images: Tensor) -> list[Tensor]:
        mean = images.mean((2, 3), keepdim=True)
        return [torch.cat([mean - 0.5, 0.1 * torch.ones_like(mean)], 1)]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_the_probe_of_separable_features_is_right_and_of_random_ones_is_not() -> None:
    source = TinySource(80)
    assert probe(Brightness(), source, small_settings(), CPU) == 1.0
    source.labels = np.random.default_rng(0).integers(0, 2, 80)
    guessed = probe(Brightness(), source, small_settings(), CPU)
    assert guessed is not None
    assert guessed < 0.8


def test_there_is_no_probe_without_labels_or_where_none_is_wanted() -> None:
    source = TinySource(80)
    assert probe(Brightness(), source, small_settings(log={"probe": False}), CPU) is None
    source.labels = np.zeros(80, int)
    assert probe(Brightness(), source, small_settings(), CPU) is None
    source.labels = None
    assert probe(Brightness(), source, small_settings(), CPU) is None
    assert probe(Brightness(), TinySource(16), small_settings(), CPU) is None


def test_images_without_a_label_take_no_part_in_the_probe() -> None:
    source = TinySource(120)
    assert source.labels is not None
    source.labels = np.where(np.arange(120) < 40, -1, source.labels)
    assert probe(Brightness(), source, small_settings(), CPU) == 1.0


class Normed(Brightness):
    """The same behind a batch norm, which takes no single vector in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.norm(super().forward(images)[0])]


def test_one_image_more_than_pieces_have_is_probed_too() -> None:
    assert probe(Normed(), TinySource(129), small_settings(), CPU) == 1.0


def test_the_probe_leaves_weights_statistics_and_mode_alone() -> None:
    backbone = TinyBackbone()
    backbone.stages[0].eval()
    modes, before = [m.training for m in backbone.modules()], state(backbone)
    assert probe(backbone, TinySource(80), small_settings(), CPU) is not None
    assert unchanged(backbone, before)
    assert [m.training for m in backbone.modules()] == modes


def test_examining_leaves_weights_statistics_gradients_and_mode_alone() -> None:
    game = Game(small_trio(), TinySource(24), small_settings())
    before = state(game.model)
    sample = game.examine()
    assert unchanged(game.model, before)
    assert game.model.training
    assert all(p.grad is None for p in game.model.parameters())
    assert {
        "restoration/error",
        "restoration/input_error",
        "embedding/std",
    } <= sample.metrics.keys()


def test_what_is_examined_equals_the_formula_on_held_out_views() -> None:
    game = Game(small_trio(), TinySource(24), small_settings())
    sample = game.examine(8)
    view = sample.batch.views[0]
    assert sample.attempt.restored is not None
    error = (sample.attempt.restored - view.crop).square().mean()
    assert sample.metrics["restoration/error"] == pytest.approx(float(error))
    assert sample.metrics["restoration/input_error"] == pytest.approx(
        float((view.image - view.crop).square().mean())
    )


def test_held_out_crops_are_a_fixed_part_of_an_epoch_nobody_trains_on() -> None:
    game = Game(small_trio(), TinySource(24), small_settings())
    crops = held_out(game.loader, 8)
    assert len(crops.index) == 8
    assert torch.equal(crops.pixels[0], held_out(game.loader, 8).pixels[0])
    trained = game.loader.crops(crops.index.tolist(), 0)
    assert not torch.equal(crops.pixels[0], trained.pixels[0])
    assert game.settings.train.epochs < HELD_OUT_EPOCH


def test_a_model_is_put_back_even_when_measuring_fails() -> None:
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())

    def fails() -> None:
        with evaluating(net):
            assert not any(m.training for m in net.modules())
            assert not torch.is_grad_enabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert [m.training for m in net.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


def test_features_of_a_source_are_the_pooled_maps_of_its_whole_images() -> None:
    torch.manual_seed(0)
    backbone, source, settings = TinyBackbone(), TinySource(70), small_settings()
    found = SourceFeatures(lambda: backbone, source, settings, CPU)()
    backbone.eval()
    wanted = backbone(whole_images(source, range(70), 16, 1))[-1].mean((2, 3))
    torch.testing.assert_close(found, wanted.detach())


def test_half_precision_measures_in_float32() -> None:
    views = {"size": 24}
    halved = small_settings(train={"precision": "bf16"}, views=views)
    game = Game(small_trio(), TinySource(24), halved)
    assert isinstance(game.precision, Precision)
    metrics = game.examine(8).metrics
    exact = Game(small_trio(), TinySource(24), small_settings(views=views)).examine(8).metrics
    assert metrics["restoration/error"] == pytest.approx(exact["restoration/error"], rel=0.05)
