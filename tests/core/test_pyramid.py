"""Crops of a level look like those of the image, and show exactly what their box says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from tensors import triangle_weights
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as torchvision_functional

from dira_core.data.crops import crop_boxes
from dira_core.data.phantom import draw
from dira_core.data.pyramid import (
    crop_level,
    directions,
    excerpt,
    levels,
    on_grid,
    place,
)
from dira_core.draws import Draws
from dira_core.types import Image

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    top = np.iinfo(dtype).max
    pixels: np.ndarray = np.random.default_rng(0).integers(0, top, shape, dtype, endpoint=True)
    return pixels


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    return crop_level(Image(pixels, (0.0, 1.0)), [(0, side) for side in pixels.shape[1:]], size)


def with_levels(pixels: np.ndarray) -> Image:
    return Image(pixels, (0.0, 255.0), levels=list(levels(pixels)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 96, 160), (2, 16, 32, 48)])
def test_a_level_holds_the_rounded_means_of_blocks_of_the_image(
    shape: tuple[int, ...], dtype: type
) -> None:
    pixels = noise(*shape, dtype=dtype)
    found = list(levels(pixels))
    assert len(found) == int(math.log2(min(shape[1:]) / 8))
    for number, level in enumerate(found, start=1):
        step, blocks = 2**number, pixels.astype(np.float64)
        for axis in range(1, pixels.ndim):
            count = blocks.shape[axis] // step
            kept = (*blocks.shape[:axis], count, step, *blocks.shape[axis + 1 :])
            blocks = blocks.reshape(kept).mean(axis + 1)
        assert level.dtype == dtype
        assert np.array_equal(level, np.floor(blocks + 0.5))


def test_no_mean_of_bright_pixels_overflows() -> None:
    for dtype, side in ((np.uint8, 2048), (np.uint16, 1024)):
        top = np.iinfo(dtype).max
        assert all((level == top).all() for level in levels(np.full((1, side, side), top, dtype)))


@pytest.mark.parametrize("shape", [(1, 35, 81), (1, 17, 16), (1, 18, 33, 47)])
def test_pixels_at_an_odd_edge_count_twice(shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    even = np.pad(pixels, [(0, 0), *((0, side % 2) for side in shape[1:])], "edge")
    (level, *_), (padded, *_) = levels(pixels), levels(even)
    assert level.shape[1:] == tuple(-(-side // 2) for side in shape[1:])
    assert np.array_equal(level, padded)


def test_an_image_smaller_than_two_crops_has_no_levels() -> None:
    assert list(levels(noise(1, 15, 900))) == []


def drawn(shape: tuple[int, ...], n: int, scale: tuple[float, float] = SCALE) -> Tensor:
    shapes = torch.tensor([shape] * n)
    return crop_boxes(shapes, Draws(torch.arange(n), seed=0, path="crop"), scale, RATIO)


@pytest.mark.parametrize("shape", [(1024, 1024), (513, 777), (100, 300, 300)])
def test_a_box_is_moved_by_at_most_a_pixel_of_its_level_and_stays_inside(
    shape: tuple[int, ...],
) -> None:
    n, size = 400, 24
    boxes, shapes, depths = drawn(shape, n), torch.tensor([shape] * n), torch.full((n,), 3)
    moved = on_grid(boxes, shapes, size, depths)
    smallest = (boxes[..., 1] - boxes[..., 0]).amin(1)
    step = torch.tensor([max(s for s in (1, 2, 4, 8) if side >= size * s) for side in smallest])
    assert len(step.unique()) == len(shape) - 1
    assert (moved % step[:, None, None] == 0).all()
    assert ((moved - boxes).abs() <= step[:, None, None]).all()
    assert (moved >= 0).all()
    assert (moved[..., 1] <= torch.tensor(shape)).all()
    assert (moved[..., 1] - moved[..., 0] >= size * step[:, None]).all()


def test_boxes_of_images_without_levels_stay_where_they_are() -> None:
    boxes = drawn((300, 400), 50)
    depths = torch.tensor([0, 4] * 25)
    moved = on_grid(boxes, torch.tensor([[300, 400]] * 50), 16, depths)
    assert torch.equal(moved[::2], boxes[::2])
    assert not torch.equal(moved[1::2], boxes[1::2])


def test_boxes_on_a_grid_are_still_spread_over_the_whole_image() -> None:
    n, side = 4000, 1000
    boxes, shapes = drawn((side, side), n, (0.3, 0.3)), torch.full((n, 2), side)
    moved = on_grid(boxes, shapes, 100, torch.full((n,), 3))
    middle, before = (b.double().mean(-1) for b in (moved, boxes))
    assert abs(float((middle - before).mean())) < 0.4
    parts = [(b[..., 1] - b[..., 0]).double().prod(1).mean() for b in (moved, boxes)]
    assert abs(float(parts[0] / parts[1]) - 1) < 0.005
    assert int(moved[..., 0].min()) == 0
    assert int(moved[..., 1].max()) == side


@pytest.mark.parametrize(
    ("shape", "box", "size"),
    [
        ((300, 200), [[17, 251], [40, 199]], 97),
        ((300, 200), [[17, 51], [40, 99]], 64),
        ((64, 64), [[0, 64], [0, 64]], 64),
        ((500, 700), [[0, 500], [1, 700]], 8),
    ],
)
def test_resizing_is_torchvisions_antialiased_one(
    shape: tuple[int, int], box: list[list[int]], size: int
) -> None:
    pixels = noise(3, *shape)
    (top, bottom), (left, right) = box
    place_of_box = (top, left, bottom - top, right - left)
    theirs = torchvision_functional.resized_crop(
        torch.from_numpy(pixels).float(), *place_of_box, [size, size], antialias=True
    )
    ours = resize(pixels.astype(np.uint16)[:, top:bottom, left:right], size)
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs.numpy()).max() < 2e-3
    rounded = resize(pixels[:, top:bottom, left:right], size)
    assert rounded.dtype == np.uint8
    off = np.abs(rounded - theirs.numpy())
    assert off.max() < 1.1  # by half a level after each axis
    assert off.mean() < 0.4


@pytest.mark.parametrize("shape", [(2, 12, 20, 30), (1, 40, 8, 9)])
def test_a_volume_is_resized_along_each_axis(shape: tuple[int, ...]) -> None:
    pixels = noise(*shape).astype(np.float64)
    expected = pixels
    for axis, side in enumerate(shape[1:], start=1):
        expected = np.moveaxis(
            np.tensordot(triangle_weights(side, 10), expected, (1, axis)), 0, axis
        )
    assert np.abs(resize(pixels, 10) - expected).max() < 1e-3
    assert np.abs(resize(pixels.astype(np.uint8), 10) - expected).max() < 1.6


def test_a_volume_is_enlarged_as_torch_does() -> None:
    volume = torch.rand(2, 9, 12, 7)
    theirs = F.interpolate(volume[None], (24, 24, 24), mode="trilinear")[0]
    assert np.abs(resize(volume.numpy(), 24) - theirs.numpy()).max() < 1e-5


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "f4"])
def test_every_type_of_pixel_can_be_resized(dtype: str) -> None:
    pixels = noise(1, 40, 40).astype(dtype)
    pixels.flags.writeable = False
    assert np.array_equal(resize(pixels, 40), pixels.astype(np.float32))


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    error = float(((ours.astype(np.float64) - theirs) ** 2).mean())
    return 10 * math.log10(255**2 / error)


def decibels(images: Iterable[Pillow.Image], size: int) -> float:
    """Return how close crops of levels are to Pillow's crops of the images, over all of them."""
    errors = []
    for picture in images:
        image = with_levels(np.array(picture)[None])
        shape = image.pixels.shape[1:]
        depths, shapes = torch.full((12,), len(image.levels)), torch.tensor([shape] * 12)
        for box in on_grid(drawn(shape, 12, SCALE), shapes, size, depths):
            (top, bottom), (left, right) = box.tolist()
            whole = picture.crop((left, top, right, bottom))
            pillow = np.asarray(whole.resize((size, size), Pillow.Resampling.BILINEAR))
            ours = crop_level(image, box.tolist(), size)
            errors.append(((ours[0].astype(np.float64) - pillow) ** 2).mean())
    return 10 * math.log10(255**2 / float(np.mean(errors)))


@pytest.mark.slow
def test_crops_of_levels_are_50_db_from_pillows_crops_of_the_image() -> None:
    small = (Pillow.fromarray(draw(index, 256).pixels[0]) for index in range(8))
    grown = (image.resize((512, 512), Pillow.Resampling.BICUBIC) for image in small)
    assert decibels(grown, 112) > 50  # radiographs do not change from pixel to pixel


def test_crops_of_levels_of_radiographs_are_50_db_from_pillows(real_data: Path) -> None:
    files = sorted((real_data / "cxr_nih").rglob("*.jpg"))[:12]
    assert decibels((Pillow.open(file).convert("L") for file in files), 64) > 50


@pytest.mark.parametrize(
    ("box", "level"),
    [
        ([[0, 128], [64, 192]], 2),
        ([[0, 127], [64, 192]], 0),
        ([[0, 126], [64, 192]], 1),
        ([[1, 129], [64, 192]], 0),
        ([[0, 256], [0, 256]], 3),
        ([[8, 40], [8, 40]], 0),
        ([[8, 30], [8, 30]], 0),
    ],
)
def test_a_crop_is_cut_from_the_smallest_level_that_is_large_enough(
    box: list[list[int]], level: int
) -> None:
    sides = (256, 128, 64, 32, 16, 8)
    marked = [np.full((1, side, side), number, np.uint8) for number, side in enumerate(sides)]
    found = crop_level(Image(marked[0], (0.0, 255.0), levels=marked[1:]), box, 32)
    assert np.abs(found - level).max() < 1e-5


def test_the_box_of_a_level_shows_the_same_place_as_in_the_image() -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (1, 256, 256)).copy()
    image = with_levels(ramp)
    crop = crop_level(image, [[32, 160], [64, 192]], 32)[0]
    centre = 64 + (np.arange(32) + 0.5) * 4 - 0.5
    assert np.abs(crop - centre)[:, 1:-1].max() <= 0.5


@pytest.mark.parametrize("shape", [(1, 60, 40), (3, 20, 31), (1, 12, 40, 9)])
def test_a_box_with_swapped_edges_is_cut_mirrored(shape: tuple[int, ...]) -> None:
    image, straight = with_levels(noise(*shape)), [[1, side - 2] for side in shape[1:]]
    crop = crop_level(image, straight, 8)
    for axis in range(len(straight)):
        box = [edges[::-1] if at == axis else edges for at, edges in enumerate(straight)]
        assert np.allclose(crop_level(image, box, 8), np.flip(crop, axis + 1), atol=1e-4)
        part = excerpt(image, box, 8)[:, *directions(box)]
        assert np.array_equal(part, np.flip(excerpt(image, straight, 8), axis + 1))


def test_a_window_is_mapped_clipped_and_repeated_over_channels() -> None:
    crop = np.array([[[-20.0, 0.0, 50.0, 100.0, 300.0]]], np.float32)
    pixels = torch.empty(2, 1, 5)
    place(crop, (0.0, 100.0), pixels)
    assert pixels.tolist() == [[[0.0, 0.0, 0.5, 1.0, 1.0]]] * 2
    place(crop, (50.0, 150.0), pixels)
    assert pixels[0].tolist() == [[0.0, 0.0, 0.0, 0.5, 1.0]]
    place(crop, (100.0, 0.0), pixels)
    assert pixels[1].tolist() == [[1.0, 1.0, 0.5, 0.0, 0.0]]
    place(crop, (7.0, 7.0), pixels)
    assert not pixels.any()
