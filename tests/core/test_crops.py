"""Crops lie where torchvision's law says, and look as torchvision resizes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as torchvision_functional

from dira_core.data.crops import (
    TRIES,
    centre_box,
    crop_boxes,
    reduce_channels,
)
from dira_core.data.pyramid import crop_level
from dira_core.draws import Draws
from dira_core.errors import RecipeError
from dira_core.types import Image
from dira_core.view_options import sides_of

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def draws(n: int, seed: int = 0) -> Draws:
    return Draws(torch.arange(n), seed=seed, path="crop")


def boxes(shape: tuple[int, ...], n: int = 3000, scale: tuple[float, float] = SCALE) -> Tensor:
    return crop_boxes(torch.tensor([shape] * n), draws(n), scale, RATIO)


def smooth(*shape: int, seed: int = 0) -> np.ndarray:
    """Noise with structure over several pixels, as bytes."""
    noise = torch.rand(1, 1, *(s // 8 + 1 for s in shape), generator=torch.manual_seed(seed))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    grown = torch.nn.functional.interpolate(noise, shape, mode=mode)[0]
    return (grown * 255).round().byte().numpy()


@pytest.mark.parametrize("shape", [(100, 100), (60, 140), (150, 97)])
def test_boxes_follow_the_law_of_torchvision(shape: tuple[int, int]) -> None:
    found = boxes(shape).numpy()
    torch.manual_seed(0)
    image = torch.empty(1, *shape)
    drawn = [RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(3000)]
    top, left, height, width = np.array(drawn).T
    sides = found[..., 1] - found[..., 0]
    pairs = [
        (sides[:, 0], height),
        (sides[:, 1], width),
        (sides.prod(1), height * width),
        (np.log(sides[:, 1] / sides[:, 0]), np.log(width / height)),
        (found[:, 0, 0], top),
        (found[:, 1, 0], left),
    ]
    assert min(stats.ks_2samp(ours, theirs).pvalue for ours, theirs in pairs) > 0.01


def test_boxes_equal_a_plain_loop_over_the_tries() -> None:
    n, shapes = 64, torch.tensor([(40, 90), (90, 40), (64, 64), (30, 200)] * 16)
    found = crop_boxes(shapes, draws(n), SCALE, RATIO)
    unit = draws(n).uniform("size", shape=(TRIES, 2))
    (least, most), (low, high) = SCALE, map(math.log, RATIO)
    for row, (height, width) in enumerate(shapes.tolist()):
        for part, stretch in unit[row].tolist():
            area = (least + (most - least) * part) * height * width
            ratio = math.exp(low + (high - low) * stretch)
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                break
        else:
            assert (height, width) == (30, 200)
            h, w = height, round(height * RATIO[1])
            assert found[row, :, 0].tolist() == [0, (width - w) // 2]
        assert (found[row, :, 1] - found[row, :, 0]).tolist() == [h, w]


@pytest.mark.parametrize("shape", [(10, 400), (400, 10)])
def test_where_nothing_fits_the_central_piece_is_torchvisions(shape: tuple[int, int]) -> None:
    (y, x) = boxes(shape, n=1, scale=(1.0, 1.0))[0].tolist()
    top, left, height, width = RandomResizedCrop.get_params(
        torch.empty(1, *shape), [1.0, 1.0], list(RATIO)
    )
    assert (y, x) == ([top, top + height], [left, left + width])


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (7, 5), (16, 64, 64), (3, 200, 50)])
def test_boxes_lie_inside_and_are_not_empty(shape: tuple[int, ...]) -> None:
    found = boxes(shape, n=500)
    assert found.shape == (500, len(shape), 2)
    assert (found[..., 0] >= 0).all()
    assert (found[..., 1] <= torch.tensor(shape)).all()
    assert (found[..., 1] > found[..., 0]).all()


def test_sides_of_a_volume_shrink_alike_and_cover_the_part_that_was_drawn() -> None:
    found = boxes((40, 120, 120), n=500, scale=(0.3, 0.5))
    sides = (found[..., 1] - found[..., 0]).double()
    part = (sides / torch.tensor([40, 120, 120])).prod(1)
    assert 0.28 < part.min() < 0.32
    assert 0.48 < part.max() < 0.52
    in_plane = (sides[:, 1] * sides[:, 2]).sqrt() / 120
    assert torch.allclose(sides[:, 0] / 40, in_plane, atol=0.5 / 40 + 0.01)


def test_a_sample_is_cropped_alike_in_any_batch() -> None:
    shapes = torch.tensor([(50 + i, 90 - i) for i in range(40)])
    together = crop_boxes(shapes, draws(40), SCALE, RATIO)
    for rows in (torch.tensor([7]), torch.arange(39, 2, -3)):
        alone = crop_boxes(shapes[rows], draws(40).select(rows), SCALE, RATIO)
        assert torch.equal(alone, together[rows])


def crop_resize(pixels: np.ndarray, box: Tensor, size: int | tuple[int, ...]) -> Tensor:
    return torch.from_numpy(crop_level(Image(pixels, (0.0, 1.0)), box.tolist(), size))


@pytest.mark.parametrize(
    ("shape", "box", "size"),
    [
        ((96, 96), [[3, 80], [10, 91]], 64),
        ((200, 300), [[0, 200], [0, 300]], 32),
        ((64, 64), [[20, 40], [5, 30]], 64),
        ((300, 200), [[17, 251], [40, 199]], 97),
    ],
)
def test_resizing_is_within_a_level_of_torchvision_and_pillow(
    shape: tuple[int, int], box: list[list[int]], size: int
) -> None:
    pixels = smooth(*shape)
    ours = crop_resize(pixels, torch.tensor(box), size)
    (top, bottom), (left, right) = box
    place = (top, left, bottom - top, right - left)
    theirs = torchvision_functional.resized_crop(
        torch.from_numpy(pixels.copy()), *place, [size, size], antialias=True
    )
    exact = torchvision_functional.resized_crop(
        torch.from_numpy(pixels.copy()).float(), *place, [size, size], antialias=True
    )
    piece = PillowImage.fromarray(pixels[0, top:bottom, left:right])
    pillow = np.asarray(piece.resize((size, size), PillowImage.Resampling.BILINEAR))
    assert torch.allclose(ours.float(), exact, atol=1.1)
    assert (ours.float() - theirs.float()).abs().max() <= 1
    error = float(((ours[0].float().numpy() - pillow) ** 2).mean())
    assert 10 * math.log10(255**2 / error) > 50


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.dtype(">u2")])
def test_every_type_of_pixel_is_resized_without_loss(dtype: type) -> None:
    pixels = smooth(40, 40).astype(dtype)
    pixels.flags.writeable = False
    resized = crop_resize(pixels, torch.tensor([[0, 40], [0, 40]]), 40)
    assert resized.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    assert np.array_equal(resized.numpy(), pixels.astype(np.float32))


def test_a_linear_volume_stays_linear() -> None:
    z, y, x = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in (12, 20, 30)], indexing="ij")
    box = torch.tensor([[2, 10], [4, 12], [6, 14]])
    resized = crop_resize((z + 10 * y + 100 * x)[None], box, 8)[0]
    expected = torch.from_numpy((z + 10 * y + 100 * x)[2:10, 4:12, 6:14])
    assert torch.allclose(resized, expected)
    half = crop_resize((z + 10 * y + 100 * x)[None], box, 4)[0]
    means = expected.unfold(0, 2, 2).unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4, 5))
    inside = (slice(1, -1),) * 3  # at the edges the filter has less to take in
    assert torch.allclose(half[inside], means[inside])


def smoothing(before: int, after: int) -> np.ndarray:
    """Return the triangle filter of one axis as a matrix (after, before), written plainly."""
    scale = before / after
    reach = max(1.0, scale)
    rows = np.zeros((after, before))
    for row in range(after):
        middle = (row + 0.5) * scale
        distance = np.abs(np.arange(before) + 0.5 - middle) / reach
        rows[row] = np.clip(1 - distance, 0, None)
        rows[row] /= rows[row].sum()
    return rows


@pytest.mark.parametrize("size", [(4, 7, 5), (24, 7, 5), (12, 40, 10), (30, 41, 52)])
def test_a_volume_is_resized_by_the_triangle_filter_along_each_axis(
    size: tuple[int, int, int],
) -> None:
    volume = np.random.default_rng(0).normal(size=(2, 12, 20, 26)).astype(np.float32)
    matrices = [smoothing(n, m) for n, m in zip(volume.shape[1:], size, strict=True)]
    expected = np.einsum("cdhw,ad,bh,ew->cabe", volume, *matrices)
    box = torch.tensor([[0, 12], [0, 20], [0, 26]])
    assert np.allclose(crop_resize(volume, box, size), expected, atol=1e-5)


def test_shrinking_a_volume_keeps_no_pattern_finer_than_the_result() -> None:
    board = np.indices((24, 24, 24)).sum(0) % 2
    resized = crop_resize(board[None].astype(np.float32), torch.tensor([[0, 24]] * 3), 8)
    assert (resized - 0.5).abs().max() < 0.05


def test_sides_are_one_for_all_axes_or_one_for_each() -> None:
    assert sides_of(64, 3) == (64, 64, 64)
    assert sides_of((32, 64, 48), 3) == (32, 64, 48)
    with pytest.raises(RecipeError, match="3 sides, the images have 2 axes"):
        sides_of((32, 64, 48), 2)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((10, 20), [[0, 10], [5, 15]]),
        ((21, 10), [[5, 15], [0, 10]]),
        ((5, 8, 6), [[0, 5], [1, 7], [0, 6]]),
    ],
)
def test_the_central_box_is_square(shape: tuple[int, ...], box: list[list[int]]) -> None:
    assert centre_box(shape).tolist() == box


def test_luminance_is_pillows() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (3, 50, 60), dtype=np.uint8)
    pillow = np.asarray(PillowImage.fromarray(colour.transpose(1, 2, 0)).convert("L"))
    assert np.array_equal(reduce_channels(colour, 1)[0], pillow)
    wide = reduce_channels(colour.astype(np.uint16) * 257, 1)
    assert np.abs(wide[0] / 257 - pillow).max() < 0.51
    assert reduce_channels(colour, 3) is colour
    assert reduce_channels(colour[:1], 3).shape == (1, 50, 60)
