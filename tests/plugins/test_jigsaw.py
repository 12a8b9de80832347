"""Jigsaw puzzles: the label undoes the shuffle, permutations differ, the loss is cross-entropy."""

from __future__ import annotations

import itertools

import pytest
import torch
from methods import told_apart
from torch import Tensor
from torch.nn import functional as F

from dira_core import Batch, Discriminator, Distortion, Draws, Encodings, RecipeError, View
from dira_core.data.dataset import Crops
from dira_core.layering import Layer
from dira_core.plugins import make
from dira_core.resolving import resolve
from dira_core.testing import TinyBackbone, choice
from dira_core.views import ViewMaker
from dira_jigsaw.jigsaw import average_places, permutations, shuffle_tiles


def build(backbone: TinyBackbone, n_perms: int = 6) -> Discriminator:
    chosen = choice("discriminator", "jigsaw", n_perms=n_perms)
    module: Discriminator = make("discriminator", chosen, backbone)
    return module


def shuffle(n_perms: int = 6) -> Distortion:
    module: Distortion = make("distortion", choice("distortion", "jigsaw", n_perms=n_perms))
    return module


def draws(n: int) -> Draws:
    return Draws(torch.arange(n), seed=3, path="op")


def batch(size: int, label: Tensor | None) -> Batch:
    image = torch.rand(size, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    view = View(image, image.clone(), torch.zeros(size, 2, 2), label)
    return Batch((view,), torch.arange(size))


@pytest.mark.parametrize("size", [2, 5])
def test_loss_and_gradients_are_the_mean_log_probability_of_the_permutation(
    backbone: TinyBackbone, size: int
) -> None:
    module, label = build(backbone), torch.tensor([5, 0, 3, 2, 3])[:size]
    given = batch(size, label)
    parameters = [*backbone.parameters(), *module.parameters()]
    objective = module(Encodings(backbone, given))
    gradients = torch.autograd.grad(objective.loss, parameters)

    deepest = backbone(given.views[0].image)[-1]
    assert deepest.shape[2:] == (4, 4)  # places overlap: rows 0-1, 1-2, 2-3
    thirds = [slice(0, 2), slice(1, 3), slice(2, 4)]
    places = [deepest[:, :, r, c].mean((2, 3)) for r in thirds for c in thirds]
    scores = module.get_submodule("head")(torch.cat(places, 1))
    expected, right = told_apart(scores, label)
    torch.testing.assert_close(objective.loss, expected, atol=1e-5, rtol=1e-5)
    reference = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(gradients, reference, atol=1e-5, rtol=1e-4)
    assert objective.metrics["accuracy"].item() == pytest.approx(right)


@pytest.mark.parametrize("shape", [(7, 7), (2, 2), (3, 3), (5, 8)])
def test_places_are_those_of_adaptive_average_pooling(shape: tuple[int, int]) -> None:
    maps = torch.rand(3, 4, *shape)
    expected = F.adaptive_avg_pool2d(maps, 3).permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(average_places(maps), expected)


@pytest.mark.parametrize("shape", [(9, 12), (11, 16)])
def test_the_inverse_permutation_gives_the_crop_back(shape: tuple[int, int]) -> None:
    images, distortion = torch.rand(20, 2, *shape), shuffle(40)
    label = distortion.label(draws(20))
    assert label is not None
    assert len(set(label.tolist())) > 5
    shuffled = distortion(images, draws(20))
    assert not torch.equal(shuffled, images)
    assert torch.equal(shuffle_tiles(shuffled, permutations(40)[label].argsort(1)), images)


def test_each_place_holds_the_tile_its_permutation_says_and_the_border_stays() -> None:
    images = torch.rand(6, 2, 11, 16)
    order = torch.stack([torch.randperm(9) for _ in range(6)])
    shuffled = shuffle_tiles(images, order)
    expected = images.clone()
    for b, place in itertools.product(range(6), range(9)):
        (row, column), (from_row, from_column) = divmod(place, 3), divmod(int(order[b, place]), 3)
        tile = images[b, :, 3 * from_row : 3 * from_row + 3, 5 * from_column : 5 * from_column + 5]
        expected[b, :, 3 * row : 3 * row + 3, 5 * column : 5 * column + 5] = tile
    assert torch.equal(shuffled, expected)


@pytest.mark.parametrize("size", [2, 8])
def test_crops_too_small_for_tiles_of_their_own_are_left_or_shuffled(size: int) -> None:
    images = torch.rand(3, 1, size, size)
    shuffled = shuffle()(images, draws(3))
    assert torch.equal(shuffled.flatten(1).sort(1).values, images.flatten(1).sort(1).values)


def test_permutations_are_permutations_that_differ_and_the_first_does_nothing() -> None:
    orders = permutations(100)
    assert orders[0].tolist() == list(range(9))
    assert torch.equal(orders.sort(1).values, torch.arange(9).expand(100, 9))
    distance = (orders[:, None] != orders[None]).sum(2) + 9 * torch.eye(100, dtype=torch.int64)
    assert distance.min() >= 6
    assert torch.equal(permutations(7), orders[:7])


def test_each_permutation_is_the_farthest_from_those_before() -> None:
    orders = permutations(14).tolist()
    every = list(itertools.permutations(range(9)))[::97]  # a sample: none of it may be farther
    for n in range(1, 14):

        def apart(candidate: tuple[int, ...], n: int = n) -> int:
            return min(
                sum(a != b for a, b in zip(candidate, before, strict=True)) for before in orders[:n]
            )

        assert apart(orders[n]) >= max(map(apart, every))


def test_permutations_are_equally_likely() -> None:
    label = shuffle(6).label(draws(3000))
    assert label is not None
    counts = torch.bincount(label, minlength=6).double()
    assert ((counts - 500).square() / 500).sum() < 25.8  # chi square, 5 degrees, 1 in 10,000


def test_a_permutation_the_head_does_not_know_is_refused_with_the_way_out(
    backbone: TinyBackbone,
) -> None:
    with pytest.raises(RecipeError, match="6 permutations apart: got number 6,"):
        build(backbone)(Encodings(backbone, batch(3, torch.tensor([0, 6, 1]))))


def test_images_that_are_not_shuffled_are_refused_with_the_way_out(backbone: TinyBackbone) -> None:
    with pytest.raises(RecipeError, match="put the distortion jigsaw into"):
        build(backbone)(Encodings(backbone, batch(3, None)))
    labelled = batch(3, torch.tensor([0, 1, 2]))
    with pytest.raises(RecipeError, match="discriminator_sees=image"):
        build(backbone)(Encodings(backbone, labelled, "clean"))


def test_by_default_only_the_target_stays_whole_and_both_sides_agree() -> None:
    chosen = {"data": "phantom", "backbone": "resnet18", "discriminator": "jigsaw"}
    recipe = resolve([Layer("test", chosen)]).recipe
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.lr_batch) == ("sgd", 0.1, 256)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 1e-4)
    assert recipe.discriminator is not None

    crop = torch.rand(8, 1, 15, 15)
    box = torch.tensor([[0.0, 15.0], [0.0, 15.0]]).expand(8, 1, 2, 2)
    views = ViewMaker(recipe, torch.device("cpu"), 1)
    view = views(Crops((crop,), box, torch.arange(8), None), 0, 0).views[0]
    assert torch.equal(view.crop, crop)
    assert view.label is not None
    assert view.label.max() > 8
    n_perms = recipe.discriminator.options.model_dump()["n_perms"]
    assert torch.equal(view.image, shuffle_tiles(crop, permutations(n_perms)[view.label]))
