"""Rotation prediction: the label says what was done, and the loss is the papers' cross-entropy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from methods import seen, told_apart
from parts import small_settings
from torch import Tensor

from dira_core import Batch, Discriminator, Distortion, Draws, Encodings, RecipeError, Trio
from dira_core.api import pretrain
from dira_core.layering import Layer
from dira_core.lines import read_lines
from dira_core.plugins import make
from dira_core.resolving import resolve
from dira_core.testing import TinyBackbone, TinySource, choice
from dira_core.view_options import Views


def build(backbone: TinyBackbone) -> Discriminator:
    name = "rotation" if backbone.dims == 2 else "rotation3d"
    module: Discriminator = make("discriminator", choice("discriminator", name), backbone)
    return module


def rotate(name: str) -> Distortion:
    module: Distortion = make("distortion", choice("distortion", name))
    return module


def rotate90() -> Distortion:
    return rotate("rotate90")


def draws(n: int) -> Draws:
    return Draws(torch.arange(n), seed=3, path="op")


def batch(size: int, label: Tensor | None, dims: int = 2) -> Batch:
    image = torch.rand(size, 1, *[16] * dims, generator=torch.Generator().manual_seed(0))
    return seen(image, label=label)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [2, 5])
def test_loss_and_gradients_are_the_mean_log_probability_of_the_turns(size: int, dims: int) -> None:
    torch.manual_seed(0)
    backbone = TinyBackbone(dims=dims)
    turned = [3, 0, 1, 2, 1] if dims == 2 else [9, 0, 4, 7, 4]
    module, label = build(backbone), torch.tensor(turned)[:size]
    given = batch(size, label, dims)
    parameters = [*backbone.parameters(), *module.parameters()]
    objective = module(Encodings(backbone, given))
    gradients = torch.autograd.grad(objective.loss, parameters)

    head = module.get_submodule("head")
    scores = head(backbone(given.views[0].image)[-1].flatten(2).mean(2))
    assert scores.shape == (size, {2: 4, 3: 10}[dims])
    expected, right = told_apart(scores, label)
    torch.testing.assert_close(objective.loss, expected, atol=1e-5, rtol=1e-5)
    reference = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(gradients, reference, atol=1e-5, rtol=1e-4)
    assert objective.metrics["accuracy"].item() == pytest.approx(right)


def test_turning_back_by_the_label_gives_the_image_back() -> None:
    images = torch.rand(40, 2, 9, 9)
    distortion = rotate90()
    rotated, label = distortion(images, draws(40)), distortion.label(draws(40))
    assert label is not None
    assert set(label.tolist()) == {0, 1, 2, 3}
    for before, after, turns in zip(images, rotated, label.tolist(), strict=True):
        back = after
        for _ in range(turns):  # a quarter turn clockwise: (i, j) <- (side - 1 - j, i)
            back = back.flip(1).transpose(1, 2)
        assert torch.equal(back, before)


def test_a_volume_is_turned_about_the_axis_its_label_says() -> None:
    volumes, distortion = torch.rand(80, 2, 5, 5, 5), rotate("rotate3d")
    rotated, label = distortion(volumes, draws(80)), distortion.label(draws(80))
    assert label is not None
    assert set(label.tolist()) == {*range(10)}
    for before, after, number in zip(volumes, rotated, label.tolist(), strict=True):
        axis = (number - 1) // 3 if number else 0  # about depth, height, width
        expected = before.numpy()
        for _ in range((number - 1) % 3 + 1 if number else 0):
            expected = np.moveaxis(expected, 1 + axis, 1)  # the axis first, the plane after it
            expected = np.stack([np.stack([quarter(s) for s in c]) for c in expected])
            expected = np.moveaxis(expected, 1, 1 + axis)
        assert np.array_equal(after.numpy(), expected)


def quarter(plane: np.ndarray) -> np.ndarray:
    """Turn a plane by 90 degrees from its second axis to its first: (i, j) <- (j, side - 1 - i)."""
    side = len(plane)
    return np.array([[plane[j, side - 1 - i] for j in range(side)] for i in range(side)])


@pytest.mark.parametrize(
    ("name", "classes", "limit"),
    [("rotate90", 4, 21.1), ("rotate3d", 10, 33.7)],  # chi square of 3 and 9, 1 in 10,000
)
def test_each_rotation_is_as_likely(name: str, classes: int, limit: float) -> None:
    label = rotate(name).label(draws(1000 * classes))
    assert label is not None
    counts = torch.bincount(label, minlength=classes).double()
    assert ((counts - 1000).square() / 1000).sum() < limit


def test_a_box_says_where_half_turns_lie_and_nothing_of_quarter_turns() -> None:
    n, distortion = 24, rotate90()
    box = torch.tensor([[3.0, 11.0], [2.0, 18.0]]).expand(n, -1, -1)
    label, turned = distortion.label(draws(n)), distortion.box(box, draws(n))
    assert label is not None
    # pixels that hold their own place in the source: row 3 + 8 (i + 0.5) / 8, and so on
    place = torch.stack(
        torch.meshgrid(torch.arange(8) + 3.5, torch.arange(8) * 2 + 3.0, indexing="ij")
    )
    rotated = distortion(place.expand(n, -1, -1, -1), draws(n))
    for turns, edges, pixels in zip(label.tolist(), turned, rotated, strict=True):
        if turns % 2:
            assert edges.isnan().all()
            continue
        for axis, (first, last) in enumerate(edges.tolist()):
            for i in range(8):
                expected = first + (i + 0.5) / 8 * (last - first)
                along = pixels[axis].select(axis, i)
                torch.testing.assert_close(along, torch.full((8,), expected))


def test_a_box_of_a_volume_keeps_the_edges_of_the_axis_it_is_turned_about() -> None:
    n, distortion = 60, rotate("rotate3d")
    box = torch.tensor([[1.0, 9.0], [3.0, 11.0], [2.0, 18.0]]).expand(n, -1, -1)
    label, turned = distortion.label(draws(n)), distortion.box(box, draws(n))
    assert label is not None
    for number, before, after in zip(label.tolist(), box, turned, strict=True):
        if number == 0:
            assert torch.equal(after, before)
            continue
        axis, turns = (number - 1) // 3, (number - 1) % 3 + 1
        for other in range(3):
            if other == axis:
                assert torch.equal(after[other], before[other])
            elif turns == 2:
                assert torch.equal(after[other], before[other].flip(0))
            else:
                assert after[other].isnan().all()


@pytest.mark.parametrize(
    ("name", "shape", "needed"),
    [("rotate90", (8, 12), r"square images: got \(8, 12\)"), ("rotate3d", (8, 8, 4), "cubes: got")],
)
def test_only_squares_and_cubes_are_rotated(name: str, shape: tuple[int, ...], needed: str) -> None:
    with pytest.raises(RecipeError, match=needed):
        rotate(name)(torch.rand(2, 1, *shape), draws(2))


@pytest.mark.parametrize(
    ("label", "got"), [(None, "got none"), (torch.tensor([1, 57, 0]), "got label 57")]
)
def test_views_without_the_right_labels_are_refused_with_the_way_out(
    backbone: TinyBackbone, label: Tensor | None, got: str
) -> None:
    with pytest.raises(RecipeError, match=f"{got}, put rotate90 into"):
        build(backbone)(Encodings(backbone, batch(3, label)))
    volumes = TinyBackbone(dims=3)
    with pytest.raises(RecipeError, match=f"{got}, put rotate3d into"):
        build(volumes)(Encodings(volumes, batch(3, label, 3)))


def test_by_default_views_are_rotated_with_their_target_and_the_optimizer_is_theirs() -> None:
    layers = [
        Layer("test", {"data": "phantom", "backbone": "resnet18", "discriminator": "rotation"})
    ]
    recipe = resolve(layers).recipe
    views = recipe.views.of(0)
    assert [operation.name for operation in views.geometry] == ["rotate90"]
    assert views.distort == Views().distort
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.lr_batch) == ("sgd", 0.2, 512)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 1e-4)
    assert (optimizer.schedule, optimizer.warmup_epochs) == ("cosine", 5)


def test_by_default_volumes_are_rotated_with_their_target_as_well() -> None:
    layers = [
        Layer("test", {"data": "phantom3d", "backbone": "unet3d", "discriminator": "rotation3d"})
    ]
    recipe = resolve(layers).recipe
    assert [operation.name for operation in recipe.views.of(0).geometry] == ["rotate3d"]
    assert (recipe.optimizer.name, recipe.optimizer.lr) == ("adam", 1e-4)


def test_it_learns_to_tell_rotations_of_images_that_have_an_up(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = TinyBackbone()
    settings = small_settings(
        views={"each": [{"geometry": [{"name": "rotate90"}]}], "distort": [], "scale": (1, 1)},
        train={"epochs": 8, "batch_size": 8},
        optimizer={"lr": 0.1, "lr_batch": None},
    )
    pretrain(Trio(backbone, build(backbone)), Upright(24), settings, tmp_path / "run")
    lines = list(read_lines(tmp_path / "run/metrics.jsonl"))
    assert sum(line["dis/accuracy"] for line in lines[-6:]) / 6 > 0.7


class Upright(TinySource):
    """Bright above and dark below."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._pixels[:, :, 12:] //= 4
