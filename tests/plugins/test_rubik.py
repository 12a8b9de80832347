"""Rubik's cube: the label undoes what was done, and the loss is the sum of its formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from methods import Flat, seen, told_apart
from torch import Tensor

import dira_rubik
from dira_core import (
    Batch,
    Discriminator,
    Distortion,
    Draws,
    Encodings,
    RecipeError,
    gather,
    resolve,
)
from dira_rubik.cubes import apart, permutations, read, together
from dira_rubik.rubik import average_places


class Volumes(Flat):
    """One map of volumes: a 1x1x1 convolution."""

    channels, strides, in_channels, dims = (6,), (1,), 1, 3

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 6, 1)  # type: ignore[assignment]


def draws(n: int) -> Draws:
    return Draws(torch.arange(n), seed=3, path="op")


def cubes(**options: Any) -> Distortion:
    (component,) = dira_rubik.dira_distortions()
    module: Distortion = component.build(component.options(**options))
    return module


def build(**options: Any) -> tuple[Volumes, Discriminator]:
    torch.manual_seed(0)
    (component,) = dira_rubik.dira_discriminators()
    backbone = Volumes()
    return backbone, component.build(component.options(**options), backbone)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1


def test_cubes_put_together_are_the_volume() -> None:
    volumes = noise(2, 3, 4, 6, 8)
    assert torch.equal(together(apart(volumes)), volumes)
    assert torch.equal(apart(volumes)[:, 5], volumes[:, :, 2:, :3, 4:])


@pytest.mark.parametrize("shape", [(8, 6, 10), (9, 7, 11)])
def test_undoing_what_the_label_says_gives_the_volume_back(shape: tuple[int, ...]) -> None:
    images, distortion = noise(30, 2, *shape), cubes(n_perms=20)
    moved, label = distortion(images, draws(30)), distortion.label(draws(30))
    assert label is not None
    number, turned, masked = read(label)
    assert len(number.unique()) > 10
    assert 0.3 < turned.float().mean() < 0.7
    assert not masked.any()
    half = [extent // 2 for extent in shape]
    for before, after, order, flags in zip(
        images, moved, permutations(20)[number].tolist(), turned.tolist(), strict=True
    ):
        back = after.clone()

        def place(cube: int) -> tuple[slice, ...]:
            corner = (cube // 4, cube // 2 % 2, cube % 2)
            return (
                slice(None),
                *(slice(c * h, (c + 1) * h) for c, h in zip(corner, half, strict=True)),
            )

        for here, there in enumerate(order):
            piece = after[place(here)]
            back[place(there)] = piece.flip((-1, -2)) if flags[here] else piece
        assert torch.equal(back, before)


def test_masked_cubes_have_half_of_their_voxels_black_in_all_channels() -> None:
    images, distortion = noise(20, 2, 8, 8, 8), cubes(masked=0.5)
    moved = apart(distortion(images, draws(20)))
    _, _, masked = read(distortion.label(draws(20)))
    assert 0.3 < masked.float().mean() < 0.7
    black = (moved == 0).float()
    assert torch.equal(black[:, :, 0], black[:, :, 1])
    assert not black[~masked].any()
    assert black[masked].mean().item() == pytest.approx(0.5, abs=0.03)


def batch(label: Tensor | None) -> Batch:
    return seen(noise(5, 1, 4, 4, 4), label=label)


def test_the_loss_is_the_sum_of_three_cross_entropies() -> None:
    backbone, module = build(n_perms=7, masks=True)
    label = torch.tensor([3, 0, 6, 2, 1]) << 16 | torch.tensor([0b1, 255, 0, 0xAA, 7]) << 8 | 0b110
    given = batch(label)
    objective = module(Encodings(backbone, given))
    places = average_places(backbone(given.views[0].image)[-1])
    expected, right = told_apart(module.get_submodule("order")(places.flatten(1)), label >> 16)
    for name, shift in (("turned", 8), ("masked", 0)):
        scores = module.get_submodule(name)(places)
        each = []
        for image in range(5):
            for cube in range(8):
                p = 1 / (1 + math.exp(-scores[image, cube].item()))
                each.append(-math.log(p if int(label[image]) >> shift + cube & 1 else 1 - p))
        expected = expected + sum(each) / 40
    torch.testing.assert_close(objective.loss, expected, rtol=1e-5, atol=1e-5)
    assert objective.metrics["accuracy"].item() == pytest.approx(right)
    assert set(objective.metrics) == {"accuracy", "accuracy_turned", "accuracy_masked"}
    assert set(build(turns=False)[1].state_dict()) == {"order.weight", "order.bias"}


def test_places_are_the_eight_parts_of_the_map() -> None:
    maps = noise(2, 3, 4, 6, 2)
    torch.testing.assert_close(average_places(maps), apart(maps).mean((3, 4, 5)))
    assert average_places(noise(1, 2, 1, 1, 1)).shape == (1, 8, 2)


def test_other_views_and_other_permutations_are_refused_with_the_way_out() -> None:
    backbone, module = build(n_perms=7)
    with pytest.raises(RecipeError, match="put the distortion rubik"):
        module(Encodings(backbone, batch(None)))
    with pytest.raises(RecipeError, match="got number 9, give .* the same n_perms"):
        module(Encodings(backbone, batch(torch.full((5,), 9 << 16))))


@pytest.mark.parametrize(
    ("preset", "turned", "masked"),
    [("rubik", 0.5, 0.0), ("rubik/plus", 0.5, 0.5), ("rubik/jigsaw", 0.0, 0.0)],
)
def test_the_presets_tell_what_their_moves_do(preset: str, turned: float, masked: float) -> None:
    got = resolve(gather(preset=preset, data="phantom3d")).recipe
    (move,) = got.views.each[0].distort or []
    assert move.options.model_dump(exclude={"p", "n_perms"}) == {"turned": turned, "masked": masked}
    assert got.discriminator is not None
    told = got.discriminator.options.model_dump()
    assert (told["turns"], told["masks"]) == (turned > 0, masked > 0)
