"""Distortions against plain loops over samples with the same draws, and the laws they follow."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
import torchvision.transforms.functional as tv
from pydantic import TypeAdapter, ValidationError
from scipy import stats
from torch import Tensor

import dira_distortions
from dira_core import (
    Distortion,
    DistortionChoice,
    Draws,
    RecipeError,
    build_distortion,
    distort,
)
from dira_core.components import Choice
from dira_distortions.elastic import Elastic, displace, waves_along

ALPHA = 1e-4
"""Seeds are fixed, so a test passes for good; this is how surprising it may have been."""

FLAT, DEEP = (7, 1, 40, 30), (5, 2, 12, 20, 15)
SHAPES = pytest.mark.parametrize("shape", [FLAT, DEEP], ids=["2-D", "3-D"])

NAMES = [
    "flip",
    "intensity-jitter",
    "gaussian-blur",
    "solarize",
    "bezier",
    "elastic",
    "inner-cutout",
    "outer-cutout",
    "noise-inpaint",
    "noise-outpaint",
    "patch-swap",
    "pixel-shuffle",
    "one-of",
]
NEEDED: dict[str, dict[str, Any]] = {
    "one-of": {"of": ["bezier", {"name": "flip", "p": 0.5}], "weights": [0.5, 0.4]}
}


def choose(name: str, **options: Any) -> Choice:
    needed = NEEDED.get(name, {})
    choice: Choice = TypeAdapter(DistortionChoice).validate_python(
        {"name": name, **needed, **options}
    )
    return choice


def make(name: str, **options: Any) -> Distortion:
    return build_distortion(choose(name, **options))


def draws(n: int, *, view: int = 0) -> Draws:
    return Draws(torch.arange(n) + 100, seed=11, view=view, path="op")


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def spots(n: int, *shape: int) -> Tensor:
    """Images whose pixels all differ: (n, 1, *shape), the same for each sample."""
    return torch.arange(math.prod(shape)).float().view(1, 1, *shape).expand(n, 1, *shape).clone()


@SHAPES
@pytest.mark.parametrize("name", NAMES)
def test_input_is_left_alone_and_shape_and_type_stay(name: str, shape: tuple[int, ...]) -> None:
    images = noise(*shape)
    before = images.clone()
    distorted = make(name)(images, draws(shape[0]))
    assert torch.equal(images, before)
    assert distorted.shape == images.shape
    assert distorted.dtype == torch.float32
    assert not torch.equal(distorted, images)
    assert distorted.min() >= 0
    assert distorted.max() <= 1


@SHAPES
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_distorted_alike_alone_and_in_a_batch(
    name: str, shape: tuple[int, ...]
) -> None:
    distortion, images, batch = make(name), noise(*shape), draws(shape[0])
    together = distortion(images, batch)
    for i in range(shape[0]):
        row = torch.tensor([i])
        assert torch.equal(distortion(images[row], batch.select(row))[0], together[i])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("flip", "solarize")])
def test_another_view_is_distorted_otherwise(name: str) -> None:
    distortion, images = make(name), noise(*FLAT)
    other = distortion(images, draws(7, view=1))
    assert not torch.equal(distortion(images, draws(7)), other)


@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_does_not_change_the_result(name: str) -> None:
    images = noise(4, 2, 20, 16)
    distortion = make(name)
    plain = distortion(images, draws(4))
    last = distortion(images.contiguous(memory_format=torch.channels_last), draws(4))
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [8, 9, 16])
def test_small_crops_are_distorted_too(name: str, side: int) -> None:
    assert make(name)(noise(6, 1, side, side), draws(6)).isfinite().all()


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("flip", {"axis": -2}),
    ("intensity-jitter", {"brightness": 0.1, "contrast": 0.9}),
    ("gaussian-blur", {"low": 0.001, "high": 0.1}),
    ("inner-cutout", {"fill": 0.3}),
    ("outer-cutout", {"side": (0.3, 0.5), "fill": 0.2}),
    ("patch-swap", {"side": (0.2, 0.4)}),
    ("patch-swap", {"side": (0.2, 0.4), "disjoint": False}),
    ("noise-inpaint", {"blocks": 4}),
    ("noise-inpaint", {"fill": "constant"}),
    ("noise-outpaint", {"blocks": 1}),
    ("noise-outpaint", {"fill": "constant"}),
    ("pixel-shuffle", {"windows": 7}),
    ("pixel-shuffle", {"windows": 700, "largest": 4}),
    ("one-of", {"of": [{"name": "flip", "p": 0.5}, "inner-cutout"], "weights": [0.6, 0.3]}),
]


@pytest.mark.parametrize("shape", [FLAT, (9, 3, 24, 24), DEEP], ids=["2-D", "colour", "3-D"])
@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in NAMES), *VARIANTS])
def test_images_distorted_one_by_one_are_those_of_the_batch(
    name: str, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    distortion, images, batch = make(name, **options), noise(*shape), draws(shape[0])
    changes = distortion.by_image(batch, shape[1:])
    assert changes is not None
    together = distortion(images, batch)
    for change, image, expected in zip(changes, images.numpy(), together, strict=True):
        changed = torch.from_numpy(np.ascontiguousarray(change(image.copy())))
        torch.testing.assert_close(changed, expected, rtol=0, atol=1e-6)


def test_a_choice_with_one_that_needs_batches_is_made_in_batches() -> None:
    assert make("one-of", of=["flip"], weights=[0.5]).by_image(draws(3), (1, 16, 16)) is not None
    one_of = make("one-of", of=["flip", "rotate90"], weights=[0.5, 0.5])
    assert one_of.by_image(draws(3), (1, 16, 16)) is None


@pytest.mark.parametrize("name", NAMES)
def test_no_image_takes_no_change(name: str) -> None:
    nobody = draws(3).select(torch.tensor([], dtype=torch.int64))
    assert make(name).by_image(nobody, (1, 16, 16)) == []


OPTIONS = [
    ("flip", {"axis": -2}),
    ("intensity-jitter", {"brightness": 0.1}),
    ("intensity-jitter", {"contrast": 0.1}),
    ("gaussian-blur", {"low": 0.008}),
    ("gaussian-blur", {"high": 0.05}),
    ("solarize", {"threshold": 0.7}),
    ("bezier", {"inverted": 1.0}),
    ("elastic", {"sigma": 0.2}),
    ("elastic", {"strength": 0.01}),
    ("inner-cutout", {"blocks": 1}),
    ("inner-cutout", {"stop": 1.0}),
    ("inner-cutout", {"margin": 0.3}),
    ("inner-cutout", {"side": (0.4, 0.5)}),
    ("inner-cutout", {"fill": 0.5}),
    ("outer-cutout", {"blocks": 1}),
    ("outer-cutout", {"stop": 1.0}),
    ("outer-cutout", {"margin": 0.4}),
    ("outer-cutout", {"side": (0.3, 0.5)}),
    ("outer-cutout", {"fill": 0.5}),
    ("noise-inpaint", {"blocks": 4}),
    ("noise-inpaint", {"blocks": 4, "stop": 0.9}),
    ("noise-inpaint", {"margin": 0.3}),
    ("noise-inpaint", {"side": (4, 2)}),
    ("noise-inpaint", {"fill": "constant"}),
    ("noise-outpaint", {"blocks": 1}),
    ("noise-outpaint", {"stop": 1.0}),
    ("noise-outpaint", {"margin": 0.4}),
    ("noise-outpaint", {"side": (0.2, 0.3)}),
    ("noise-outpaint", {"fill": "constant"}),
    ("noise-outpaint", {"sides": ((0.1, 0.2), (0.5, 0.6))}),
    ("noise-inpaint", {"sides": ((0.1, 0.2), (0.5, 0.6))}),
    ("patch-swap", {"swaps": 3}),
    ("patch-swap", {"side": (0.2, 0.3)}),
    ("patch-swap", {"margin": 0.3}),
    ("patch-swap", {"disjoint": False}),
    ("pixel-shuffle", {"windows": 5}),
    ("pixel-shuffle", {"largest": 4}),
    ("one-of", {"of": ["bezier", "flip"]}),
    ("one-of", {"weights": [0.1, 0.1]}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_every_option_has_an_effect(name: str, options: dict[str, Any]) -> None:
    images = noise(16, 1, 40, 40)
    usual = make(name)(images, draws(16))
    assert not torch.equal(make(name, **options)(images, draws(16)), usual)


def test_every_option_is_in_the_table_above() -> None:
    known = {(name, key) for name, options in OPTIONS for key in options}
    fields = {(name, key) for name in NAMES for key in type(choose(name).options).model_fields}
    assert known == {(name, key) for name, key in fields if key != "p"}


def test_the_tables_need_no_torch() -> None:
    code = "import sys, dira_distortions; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_distortion_is_on_offer_for_images_and_volumes() -> None:
    offered = {component.name: component for component in dira_distortions.dira_distortions()}
    assert sorted(offered) == sorted(NAMES)
    assert all(component.dims == (2, 3) for component in offered.values())


@SHAPES
def test_flip_mirrors_the_axis_and_swaps_its_edges(shape: tuple[int, ...]) -> None:
    images, axes = noise(*shape), len(shape) - 2
    box = noise(shape[0], axes, 2)
    for axis in range(-axes, 0):
        flip = make("flip", axis=axis)
        expected = np.stack([np.flip(image, axis) for image in images.numpy()])
        np.testing.assert_array_equal(flip(images, draws(shape[0])).numpy(), expected)
        swapped = box.clone()
        swapped[:, axis, 0], swapped[:, axis, 1] = box[:, axis, 1], box[:, axis, 0]
        assert torch.equal(flip.box(box, draws(shape[0])), swapped)


def test_flip_refuses_an_axis_that_is_not_spatial() -> None:
    with pytest.raises(RecipeError, match="got -3 for 2-D images"):
        make("flip", axis=-3)(noise(*FLAT), draws(7))


def test_jitter_is_that_of_torchvision_in_both_orders() -> None:
    images, batch = noise(40, 1, 12, 12), draws(40)
    factors = batch.uniform("factors", -1, 1, shape=(3,)) * torch.tensor([0.4, 0.3, 1])
    brightness, contrast = (1 + factors[:, :2].T).tolist()
    first = (factors[:, 2] < 0).tolist()
    assert 8 < sum(first) < 32
    jittered = make("intensity-jitter", brightness=0.4, contrast=0.3)(images, batch)
    for i, image in enumerate(images):
        if first[i]:
            expected = tv.adjust_contrast(tv.adjust_brightness(image, brightness[i]), contrast[i])
        else:
            expected = tv.adjust_brightness(tv.adjust_contrast(image, contrast[i]), brightness[i])
        torch.testing.assert_close(jittered[i], expected, rtol=0, atol=1e-6)


def test_jitter_of_volumes_blends_with_the_mean_of_each() -> None:
    images, batch = noise(*DEEP) * 0.4 + 0.3, draws(5)
    factor = 1 + 0.2 * batch.uniform("factors", -1, 1, shape=(3,))[:, 1]
    jittered = make("intensity-jitter", brightness=0, contrast=0.2)(images, batch)
    for i, image in enumerate(images):
        expected = image.mean() + factor[i] * (image - image.mean())
        torch.testing.assert_close(jittered[i], expected, rtol=0, atol=1e-6)


@SHAPES
def test_blur_is_that_of_scipy(shape: tuple[int, ...]) -> None:
    images, batch = noise(*shape), draws(shape[0])
    low, high = 0.5 / 224, 20 / 224
    parts = batch.uniform("sigma", low, high).tolist()
    blurred = make("gaussian-blur", low=low, high=high)(images, batch)
    extents = shape[2:]
    for i, channel in itertools.product(range(shape[0]), range(shape[1])):
        expected = scipy.ndimage.gaussian_filter(
            images[i, channel].double().numpy(),
            sigma=[parts[i] * extent for extent in extents],
            radius=[math.ceil(3 * parts[i] * extent) for extent in extents],
            mode="mirror",
        )
        np.testing.assert_allclose(blurred[i, channel].numpy(), expected, rtol=0, atol=2e-6)


def test_blur_keeps_a_constant_image_and_lies_between_its_bounds() -> None:
    blur = make("gaussian-blur")
    ones = torch.ones(8, 1, 64, 64)
    torch.testing.assert_close(blur(ones, draws(8)), ones)
    parts = draws(4000).uniform("sigma", 0.1 / 224, 2 / 224) * 224
    assert stats.kstest(parts.numpy(), "uniform", (0.1, 1.9)).pvalue > ALPHA


def published_curve(control: np.ndarray, inverted: bool) -> tuple[np.ndarray, np.ndarray]:
    """A cubic Bezier of 100,000 points by Bernstein polynomials: its x rising, its y as told."""
    t = np.linspace(0, 1, 100_000)
    points = np.array([[0, 0], control[:, 0], control[:, 1], [1, 1]])
    bernstein = [math.comb(3, k) * t**k * (1 - t) ** (3 - k) for k in range(4)]
    x, y = np.einsum("kn,kd->dn", bernstein, points)
    return np.sort(x), np.sort(y)[::-1] if inverted else np.sort(y)


@SHAPES
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_solarize_is_that_of_torchvision(shape: tuple[int, ...], threshold: float) -> None:
    images = noise(*shape)
    images[:, :, 0, 0] = threshold
    expected = tv.solarize(images.view(shape[0], 1, shape[2], -1), threshold).view(shape)
    assert torch.equal(make("solarize", threshold=threshold)(images, draws(shape[0])), expected)


@SHAPES
def test_bezier_is_the_published_map(shape: tuple[int, ...]) -> None:
    images, batch = noise(*shape), draws(shape[0])
    control = batch.uniform("control", shape=(2, 2)).double().numpy()
    inverted = batch.bernoulli("inverted", 0.5).tolist()
    mapped = make("bezier")(images, batch)
    for i, image in enumerate(images.double().numpy()):
        error = np.abs(
            np.interp(image, *published_curve(control[i], inverted[i])) - mapped[i].numpy()
        )
        assert error.mean() < 1e-5
        assert error.max() < 2e-2  # where the curve starts or ends vertically


def test_bezier_is_monotone_keeps_the_end_points_and_inverts_half() -> None:
    ramp = torch.linspace(0, 1, 256).expand(600, 1, 1, 256)
    mapped = make("bezier")(ramp, draws(600)).view(600, 256)
    steps = mapped.diff(dim=1)
    rising = mapped[:, 0] == 0
    assert (steps[rising] >= 0).all()
    assert (steps[~rising] <= 0).all()
    ends = torch.where(rising[:, None], torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(mapped[:, [0, -1]], ends, rtol=0, atol=0)
    assert stats.binomtest(int(rising.sum()), 600, 0.5).pvalue > ALPHA
    outside = make("bezier")(torch.tensor([-0.5, 1.5]).expand(600, 1, 1, 2), draws(600))
    torch.testing.assert_close(outside.view(600, 2), ends, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(6, 2, 17, 40), (3, 2, 5, 17, 40)], ids=["2-D", "3-D"])
def test_displaced_pixels_are_those_of_scipy(shape: tuple[int, ...]) -> None:
    images, axes = noise(*shape), len(shape) - 2
    fields = 20 * (noise(shape[0], 2, *shape[2:]) - 0.5)
    moved = displace(images, fields)
    for i, channel in itertools.product(range(shape[0]), range(shape[1])):
        places = np.indices(shape[2:]).astype(float)
        places[axes - 2 :] += fields[i].double().numpy()
        expected = scipy.ndimage.map_coordinates(
            images[i, channel].double().numpy(), places, order=1, mode="reflect"
        )
        np.testing.assert_allclose(moved[i, channel].numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("extent", "sigma"), [(64, 8.0), (32, 8.0), (20, 1.5), (8, 30.0)])
def test_waves_have_the_covariance_of_smoothed_noise(extent: int, sigma: float) -> None:
    waves = waves_along(extent, sigma).double()
    smoothing = scipy.ndimage.gaussian_filter1d(np.eye(extent), sigma, mode="constant")
    covariance = smoothing.T @ smoothing
    error = np.abs((waves.mT @ waves).numpy() - covariance).max()
    assert error < 1e-6 * covariance.max()
    assert len(waves) < extent


def test_elastic_is_by_default_that_of_transvw() -> None:
    elastic = make("elastic")
    assert isinstance(elastic, Elastic)
    volume = torch.Size((32, 64, 64))
    assert elastic.sigma(volume) == 8
    assert elastic.alpha(volume) == pytest.approx(991)


@pytest.mark.parametrize("shape", [(64, 64), (32, 64, 64), (16, 32, 32)])
def test_elastic_moves_pixels_by_its_strength_and_not_along_depth(shape: tuple[int, ...]) -> None:
    far, n = shape[-1], 60
    ramp = torch.arange(far).float().expand(n, 1, *shape)
    middle = tuple(extent // 2 for extent in shape)
    moved = (make("elastic", strength=0.03)(ramp, draws(n)) - ramp)[:, 0, *middle]
    expected = 0.03 * far
    if len(shape) == 3:  # a Gaussian as wide as the volume is deep has part of it outside
        expected *= math.erf(shape[0] / 2 / (far / 8)) ** 0.5
    assert stats.kstest(moved.numpy(), "norm", (0, expected)).pvalue > ALPHA
    if len(shape) == 3:
        depth = torch.arange(shape[0]).float()[:, None, None].expand(2, 1, *shape)
        torch.testing.assert_close(make("elastic")(depth, draws(2)), depth)


def random_words(batch: Draws, slot: str, *shape: int) -> Tensor:
    """The highest 31 bits of random words, by sample."""
    words = batch.bits(slot, math.prod(shape)).view(batch.batch_size, *shape)
    return (words >> 33) % 2**31


def pick(word: int, low: int, high: int) -> int:
    """One of low to high, as the word says."""
    return low + (word * (high - low + 1) >> 31)


def plain_blocks(
    batch: Draws, shape: tuple[int, ...], low: list[int], high: list[int], margin: list[int]
) -> list[list[tuple[slice, ...]]]:
    """The blocks of each sample, ten at most, one by one."""
    axes = len(low)
    blocks: list[list[tuple[slice, ...]]] = []
    for words in random_words(batch, "blocks", 10, 2 * axes + 1).tolist():
        blocks.append([])
        for own in words:
            block = []
            for axis, extent in enumerate(shape[2:]):
                side = pick(own[axis], low[axis], high[axis])
                a = pick(own[axes + axis], margin[axis], extent - side - margin[axis])
                block.append(slice(a, a + side))
            blocks[-1].append(tuple(block))
            if own[-1] < 0.1 * 2**31:
                break
    return blocks


@SHAPES
def test_cutouts_fill_the_blocks_or_all_but_the_blocks(shape: tuple[int, ...]) -> None:
    images, batch = noise(*shape), draws(shape[0])
    extents = shape[2:]
    low, high = ([round(side * e) for e in extents] for side in (0.2, 0.5))
    margin = [round(0.1 * e) for e in extents]
    blocks = plain_blocks(batch, shape, low, high, margin)
    options = {"side": (0.2, 0.5), "margin": 0.1, "fill": 0.25}
    inner = make("inner-cutout", **options)(images, batch)
    outer = make("outer-cutout", **options)(images, batch)
    for i, image in enumerate(images):
        cut, kept = image.clone(), torch.full_like(image, 0.25)
        for block in blocks[i]:
            cut[:, *block] = 0.25
            kept[:, *block] = image[:, *block]
        assert torch.equal(inner[i], cut)
        assert torch.equal(outer[i], kept)


@SHAPES
@pytest.mark.parametrize("fill", ["noise", "constant"])
def test_inpainting_puts_noise_into_the_blocks(shape: tuple[int, ...], fill: str) -> None:
    images, batch = noise(*shape), draws(shape[0])
    extents = shape[2:]
    low, high = ([max(1, e // by) for e in extents] for by in (6, 3))
    margin = [round(3 / 64 * e) for e in extents]
    blocks = plain_blocks(batch, shape, low, high, margin)
    painted = make("noise-inpaint", blocks=10, fill=fill)(images, batch)
    number = batch.uniform("noise", shape=[1] * (len(shape) - 1))
    for i, image in enumerate(images):
        inside = torch.zeros(image.shape, dtype=torch.bool)
        for block in blocks[i]:
            inside[:, *block] = True
        filling = painted[i].clone()
        assert torch.equal(filling.where(~inside, 0), image.where(~inside, 0))
        if fill == "constant":
            assert (filling[inside] == number[i]).all()
        else:  # all channels, all pixels another number, of 65,536
            assert len(filling[inside].unique()) > 0.95 * inside.sum()
            assert torch.equal(filling[inside], batch.noise("noise", shape[1:]).whole()[i][inside])


@pytest.mark.parametrize("name", ["noise-inpaint", "noise-outpaint"])
def test_blocks_may_have_bounds_of_their_own_along_each_axis(name: str) -> None:
    sides = [(0.5, 0.5), (0.25, 0.25), (1 / 16, 3 / 16)]
    images = torch.full((40, 1, 8, 16, 16), -1.0)
    painted = make(name, sides=sides, margin=0, blocks=1)(images, draws(40)) >= 0
    block = (painted if name == "noise-inpaint" else ~painted)[:, 0]
    assert (block.any(3).any(2).sum(1) == 4).all()
    assert (block.any(3).any(1).sum(1) == 4).all()
    assert set(block.any(2).any(1).sum(1).tolist()) == {1, 2, 3}
    with pytest.raises(RecipeError, match="along 3 axes, the images have 2"):
        make(name, sides=sides)(images[:, :, 0], draws(40))


def test_painted_noise_is_uniform_and_independent_of_the_image() -> None:
    painted = make("noise-inpaint")(torch.full((60, 2, 9, 24, 24), -1.0), draws(60))
    inside = painted >= 0
    assert torch.equal(inside[:, 0], inside[:, 1])
    first, second = painted[:, 0][inside[:, 0]].numpy(), painted[:, 1][inside[:, 1]].numpy()
    assert stats.kstest(first, "uniform").pvalue > ALPHA
    assert stats.pearsonr(first, second).pvalue > ALPHA


def test_inpainting_fills_one_block_of_a_sixth_to_a_third_by_default() -> None:
    painted = make("noise-inpaint")(torch.full((300, 1, 64, 64), -1.0), draws(300))[:, 0] >= 0
    sides = torch.stack([painted.any(2).sum(1), painted.any(1).sum(1)], 1)
    assert torch.equal(painted.sum((1, 2)), sides.prod(1))
    counts = torch.bincount(sides.flatten(), minlength=22)
    assert counts[:10].sum() == 0
    assert len(counts) == 22
    assert stats.chisquare(counts[10:].numpy()).pvalue > ALPHA
    assert not painted[:, :3].any()
    assert not painted[:, -3:].any()


@SHAPES
def test_outpainting_keeps_the_blocks_and_puts_noise_around_them(shape: tuple[int, ...]) -> None:
    images, batch = noise(*shape), draws(shape[0])
    low, high = ([max(1, round(part * e)) for e in shape[2:]] for part in (3 / 7, 4 / 7))
    blocks = plain_blocks(batch, shape, low, high, [round(3 / 64 * e) for e in shape[2:]])
    painted = make("noise-outpaint", blocks=10)(images, batch)
    for i, around in enumerate(batch.noise("noise", shape[1:]).whole()):
        expected = around.clone()
        for block in blocks[i]:
            expected[:, *block] = images[i][:, *block]
        assert torch.equal(painted[i], expected)


def exact_cover(extent: int, low: int, high: int, margin: int) -> float:
    """The expected share of a square crop under blocks: at most 10, stop probability 0.1.

    The axes are independent, so are blocks: one block covers pixel (y, x) with probability
    c(y) c(x), k blocks with 1 - (1 - c(y) c(x))^k; k is geometric and cut off at 10.
    """
    covered = np.zeros(extent)
    for side in range(low, high + 1):
        firsts = range(margin, extent - side - margin + 1)
        for first in firsts:
            covered[first : first + side] += 1 / len(firsts) / (high - low + 1)
    both = np.outer(covered, covered)
    law = [0.1 * 0.9 ** (k - 1) for k in range(1, 10)] + [0.9**9]
    return float(sum(p * (1 - (1 - both) ** k).mean() for k, p in enumerate(law, start=1)))


@pytest.mark.parametrize("extent", [64, 224])
@pytest.mark.parametrize(
    ("name", "sides", "published"),
    [("inner-cutout", (10, 70), 0.179), ("outer-cutout", (154, 174), 0.228)],
)
def test_cutouts_blacken_the_published_share(
    name: str, sides: tuple[int, int], published: float, extent: int
) -> None:
    low, high = (round(side / 224 * extent) for side in sides)
    exact = exact_cover(extent, low, high, round(3 / 224 * extent))
    exact = exact if name == "inner-cutout" else 1 - exact
    black = make(name)(torch.ones(400, 1, extent, extent), draws(400)) == 0
    shares = black.flatten(1).double().mean(1)
    assert abs(shares.mean() - exact) < 4 * shares.std() / 400**0.5
    assert abs(exact - published) < 0.01
    margin = round(3 / 224 * extent)
    border = black[..., :margin] if name == "inner-cutout" else ~black[..., :margin]
    assert not border.any()


def plain_swaps(images: Tensor, batch: Draws, disjoint: bool) -> Tensor:
    """Ten swaps, sample by sample and block by block, with sides of 10 to 30 % and no margin."""
    extents = images.shape[2:]
    swapped, tries = images.clone(), 8 if disjoint else 1
    words = random_words(batch, "swaps", 10, 2 + 8, len(extents))
    for i, k in itertools.product(range(len(images)), range(10)):
        first, *others = words[i, k].tolist()
        side = [
            pick(w, round(0.1 * n), round(0.3 * n)) for w, n in zip(first, extents, strict=True)
        ]
        a, *places = (
            [pick(w, 0, n - s) for w, n, s in zip(own, extents, side, strict=True)]
            for own in others[: 1 + tries]
        )
        for b in places:
            apart = any(abs(p - q) >= s for p, q, s in zip(a, b, side, strict=True))
            if apart or not disjoint:
                one = [slice(p, p + s) for p, s in zip(a, side, strict=True)]
                two = [slice(q, q + s) for q, s in zip(b, side, strict=True)]
                source = (swapped if disjoint else images)[i]
                before, after = source[:, *one].clone(), source[:, *two].clone()
                swapped[i][:, *one] = after
                swapped[i][:, *two] = before
                break
    return swapped


@SHAPES
@pytest.mark.parametrize("disjoint", [True, False])
def test_swaps_are_those_of_a_plain_loop(shape: tuple[int, ...], disjoint: bool) -> None:
    images, batch = noise(*shape), draws(shape[0])
    swap = make("patch-swap", side=(0.1, 0.3), margin=0, disjoint=disjoint)
    assert torch.equal(swap(images, batch), plain_swaps(images, batch, disjoint))


def test_disjoint_swaps_lose_no_pixel_and_the_public_variant_does() -> None:
    images = spots(50, 64, 64)
    for side in ((10 / 224, 15 / 224), (0.3, 0.45), (0.6, 0.6)):
        swapped = make("patch-swap", side=side)(images, draws(50))
        assert torch.equal(swapped.flatten(1).sort(1).values, images.flatten(1))
    public = make("patch-swap", side=(0.3, 0.45), disjoint=False)(images, draws(50))
    assert not torch.equal(public.flatten(1).sort(1).values, images.flatten(1))


@pytest.mark.parametrize("extent", [64, 224])
def test_swaps_touch_about_six_percent_of_the_image(extent: int) -> None:
    images = spots(100, extent, extent)
    moved = (make("patch-swap")(images, draws(100)) != images).flatten(1).double().mean(1)
    assert abs(moved.mean() - 0.06) < 0.005


@SHAPES
def test_shuffling_is_that_of_a_plain_loop(shape: tuple[int, ...]) -> None:
    images, batch, windows = noise(*shape), draws(shape[0]), 150
    extents = shape[2:]
    words = random_words(batch, "windows", windows, 2, len(extents))
    keys = random_words(batch, "order", 10_000)
    shuffled = make("pixel-shuffle", windows=windows, largest=4)(images, batch)
    for i, image in enumerate(images):
        expected, used = image.clone(), 0
        for sides, firsts in words[i].tolist():
            side = [pick(w, 1, n // 4) for w, n in zip(sides, extents, strict=True)]
            corner = [pick(w, 0, n - s) for w, n, s in zip(firsts, extents, side, strict=True)]
            window = [slice(a, a + s) for a, s in zip(corner, side, strict=True)]
            values = image[:, *window].flatten(1)
            order = keys[i, used : used + values.shape[1]].argsort()
            used += values.shape[1]
            expected[:, *window] = values[:, order].view(-1, *side)
        assert torch.equal(shuffled[i], expected)


def test_one_shuffled_window_keeps_its_values_and_all_others() -> None:
    images = spots(200, 60, 50)
    shuffled = make("pixel-shuffle", windows=1, largest=5)(images, draws(200))
    assert torch.equal(shuffled.flatten(1).sort(1).values, images.flatten(1))
    moved = (shuffled != images)[:, 0]
    assert moved.any(2).sum(1).max() <= 12
    assert moved.any(1).sum(1).max() <= 10
    assert 50 < moved.sum((1, 2)).max() <= 120


def test_every_order_of_a_window_is_equally_likely() -> None:
    images = spots(3000, 2, 2)
    one = make("pixel-shuffle", windows=1, largest=1)(images, draws(3000)).flatten(1)
    both = random_words(draws(3000), "windows", 1, 2, 2)[:, 0, 0] >= 2**30
    full = one[both.all(1)]
    codes = {order: i for i, order in enumerate(itertools.permutations(range(4)))}
    counts = torch.bincount(torch.tensor([codes[tuple(o)] for o in full.long().tolist()]))
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > ALPHA


def test_one_of_follows_its_weights_and_leaves_the_rest() -> None:
    of = [
        {"name": "inner-cutout", "side": (1, 1), "margin": 0, "fill": fill} for fill in (0.1, 0.2)
    ]
    last = {"name": "inner-cutout", "side": (1, 1), "margin": 0, "fill": 0.3, "p": 0.5}
    n = 4000
    one_of = make("one-of", of=[*of, last], weights=[0.3, 0.05, 0.4])
    values = one_of(torch.full((n, 1, 2, 2), 0.9), draws(n))
    assert (values == values[:, :, :1, :1]).all()
    counts = [int(values[:, 0, 0, 0].isclose(torch.tensor(v)).sum()) for v in (0.1, 0.2, 0.3, 0.9)]
    assert stats.chisquare(counts, [0.3 * n, 0.05 * n, 0.2 * n, 0.45 * n]).pvalue > ALPHA


def test_one_of_applies_to_each_sample_what_was_chosen_for_it() -> None:
    images, batch = noise(60, 1, 16, 16), draws(60)
    chosen = batch.choice("chosen", [0.4, 0.3, 0.3])
    distorted = make("one-of", of=["bezier", "flip"], weights=[0.4, 0.3])(images, batch)
    assert torch.equal(distorted[chosen == 2], images[chosen == 2])
    assert torch.equal(distorted[chosen == 1], images[chosen == 1].flip(-1))
    curve = make("bezier")(images, batch.child("0"))
    assert torch.equal(distorted[chosen == 0], curve[chosen == 0])


def test_one_of_moves_the_box_of_the_images_it_flips() -> None:
    ramp = torch.arange(12.0).expand(80, 1, 12, 12)
    box = torch.tensor([[0.0, 9.0], [2.0, 14.0]]).expand(80, 2, 2)
    of = [{"name": "flip", "p": 0.5}, {"name": "flip", "axis": -2}, "inner-cutout"]
    one_of = make("one-of", of=of, weights=[0.5, 0.2, 0.2])
    images, moved = one_of(ramp, draws(80)), one_of.box(box, draws(80))
    mirrored = images[:, 0, 0, 0] == 11
    assert 5 < mirrored.sum() < 40
    assert torch.equal(moved[:, 1, 0] == 14, mirrored)
    upside_down = moved[:, 0, 0] == 9
    assert 5 < upside_down.sum() < 40
    assert not (upside_down & mirrored).any()


def test_one_of_passes_on_the_labels_of_the_images_it_turned() -> None:
    turn = {"name": "rotate90", "p": 0.5}
    inner = {"name": "one-of", "of": ["bezier", turn], "weights": [0.2, 0.8]}
    one_of = make("one-of", of=[inner, "solarize"], weights=[0.9, 0.1])
    ramp = torch.arange(16.0).view(1, 1, 4, 4).expand(200, -1, -1, -1) / 16
    label = one_of.label(draws(200))
    assert label is not None
    assert set(label.tolist()) == {0, 1, 2, 3}
    for before, after, turns in zip(ramp, one_of(ramp, draws(200)), label.tolist(), strict=True):
        turned = [torch.equal(after, before.rot90(k, (-2, -1))) for k in (1, 2, 3)]
        assert turned == [k == turns for k in (1, 2, 3)]
    some = torch.tensor([7, 5, 150])
    assert torch.equal(one_of.label(draws(200).select(some)), label[some])
    assert make("one-of", of=["bezier"], weights=[1.0]).label(draws(3)) is None


def test_one_of_refuses_two_kinds_of_label() -> None:
    one_of = make("one-of", of=["rotate90", "jigsaw"], weights=[0.5, 0.5])
    with pytest.raises(RecipeError, match="got two distortions that make some"):
        one_of.label(draws(3))


def test_one_of_takes_one_of_itself() -> None:
    inside = {"name": "one-of", "of": ["flip"], "weights": [1.0]}
    images = noise(6, 1, 8, 8)
    nested = make("one-of", of=[inside], weights=[1.0])
    assert torch.equal(nested(images, draws(6)), images.flip(-1))


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("one-of", {"weights": [0.5]}, "each distortion has a weight"),
        ("one-of", {"weights": [0.8, 0.3]}, "at most 1 in sum"),
        ("one-of", {"weights": [-0.1, 0.3]}, "probabilities"),
        ("one-of", {"of": [], "weights": []}, "at least 1 item"),
        ("inner-cutout", {"side": (0.3, 0.2)}, "smaller bound comes first"),
        ("inner-cutout", {"side": (0.3, 1.2)}, "less than or equal to 1"),
        ("gaussian-blur", {"low": 0.1}, "smaller bound comes first"),
        ("noise-inpaint", {"side": (3, 6)}, "smaller side comes first"),
        ("flip", {"axis": 0}, "less than or equal to -1"),
        ("flip", {"axes": -1}, "Extra inputs"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    name: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        choose(name, **options)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_distort_touches_exactly_the_rows_the_draws_pick(p: float) -> None:
    images, batch = noise(64, 1, 9, 9), draws(64)
    before = images.clone()
    distorted = distort(make("bezier"), images, batch, p)
    rows = batch.bernoulli("p", p)
    assert torch.equal(distorted[~rows], images[~rows])
    expected = make("bezier")(images, batch)
    assert torch.equal(distorted[rows], expected[rows])
    assert torch.equal(images, before)
    if p == 0.5:
        assert 16 < rows.sum() < 48


def test_an_unknown_distortion_is_named_with_its_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'flip'"):
        build_distortion(Choice("flipp", choose("flip").options))
