"""Filters along axes are those of scipy, and of the plain sums they stand for."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image as PillowImage
from tensors import triangle_weights

from dira_core.buffers import Buffers
from dira_core.filters import blurring, filtered, resized, resizing

SHAPES = [(1, 20, 30), (3, 17, 64), (2, 9, 12, 16)]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_blur_is_a_correlation_that_goes_on_as_in_a_mirror(shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    halves = [(0.5, 0.25), (0.4, 0.2, 0.1), (0.2, 0.2, 0.1, 0.1)][: len(shape) - 1]
    ours = filtered(image, [blurring(n, h) for n, h in zip(shape[1:], halves, strict=True)])
    expected = image.astype(np.float64)
    for axis, half in enumerate(halves, start=1):
        kernel = [*half[:0:-1], *half]
        expected = scipy.ndimage.correlate1d(expected, kernel, axis, mode="mirror")
    assert ours.dtype == np.float32
    assert np.abs(ours - expected).max() < 1e-6


def test_a_kernel_may_reach_as_far_as_the_image() -> None:
    image, half = noise(1, 5, 5), (0.2, 0.1, 0.1, 0.1, 0.1)
    ours = filtered(image, [blurring(5, half)] * 2)
    expected = image.astype(np.float64)
    for axis in (1, 2):
        kernel = [*half[:0:-1], *half]
        expected = scipy.ndimage.correlate1d(expected, kernel, axis, mode="mirror")
    assert np.abs(ours - expected).max() < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["u1", ">u2", "f4", "f8"])
def test_every_layout_and_type_is_filtered_alike_and_left_alone(
    shape: tuple[int, ...], dtype: str
) -> None:
    plain = (noise(*shape) * 200).astype(dtype)
    expected = filtered(plain, [resizing(side, 8) for side in shape[1:]])
    order = (0, *range(len(shape) - 1, 0, -1))
    wide = np.repeat(plain, 2, axis=-1)
    for other in (
        np.asfortranarray(plain),
        plain.transpose(order).copy().transpose(order),
        wide[..., ::2],
    ):
        before = other.copy()
        assert np.array_equal(filtered(other, [resizing(n, 8) for n in shape[1:]]), expected)
        assert np.array_equal(other, before)


@pytest.mark.parametrize(("side", "size"), [*itertools.product([8, 9, 31, 64], [8, 13, 64])])
def test_taps_of_a_resize_hold_its_weights(side: int, size: int) -> None:
    weights, taps = triangle_weights(side, size), resizing(side, size)
    assert np.allclose(weights.sum(1), 1)
    dense, ends = np.zeros((size, side)), [*taps.starts.tolist()[1:], len(taps.lines)]
    for row, (start, end) in enumerate(zip(taps.starts.tolist(), ends, strict=True)):
        dense[row, taps.lines[start:end]] = taps.weights[start:end]
    assert np.allclose(dense, weights, atol=1e-7)


def test_memory_is_used_again_only_when_nobody_holds_it() -> None:
    buffers = Buffers()
    first = buffers.empty(3, 4)
    second = buffers.empty(4, 3)
    assert first.data_ptr() != second.data_ptr()
    place, part = first.data_ptr(), first[1:, :2]
    del first
    assert buffers.empty(3, 4).data_ptr() != place
    del part
    again = buffers.empty(12)
    assert again.data_ptr() == place
    assert again.numpy() is not None
    array = again.numpy()
    del again
    assert buffers.empty(12).data_ptr() != place
    assert array.size == 12


def test_memory_travels_empty_even_while_some_is_held() -> None:
    buffers = Buffers()
    held = buffers.empty(12)
    there = copy.deepcopy(buffers)  # as pickle takes it apart
    assert there.empty(12).data_ptr() != held.data_ptr()


def test_memory_has_the_layout_that_is_asked_for() -> None:
    buffers = Buffers()
    for like in (
        torch.zeros(2, 3, 4, 5),
        torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    ):
        made = buffers.like(like[:1], 2)
        assert (made.shape, made.stride(), made.dtype) == (like.shape, like.stride(), torch.float32)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 5, 7), (1, 1, 9), (3, 4, 3, 2)])
@pytest.mark.parametrize("n", [1, 6, 8])
def test_bytes_are_resized_as_other_numbers_and_rounded(shape: tuple[int, ...], n: int) -> None:
    image = (noise(*shape) * 256).astype(np.uint8)
    kept = image.copy()
    for turns in itertools.product([False, True], repeat=len(shape) - 1):
        taps = [resizing(side, n, turn) for side, turn in zip(shape[1:], turns, strict=True)]
        size = [n] * len(turns)
        found = resized(image, size, turns)
        assert found.dtype == np.uint8
        assert found.shape == (shape[0], *size)
        assert np.abs(found - filtered(image, taps)).max() < 0.55 * len(turns)
        for other in (np.asfortranarray(image), np.repeat(image, 2, axis=-1)[..., ::2]):
            assert np.array_equal(resized(other, size, turns), found)
    assert np.array_equal(image, kept)


def test_pillow_resizes_bytes_to_the_same_but_for_a_level() -> None:
    image = (noise(1, 90, 61) * 256).astype(np.uint8)
    pillow = PillowImage.fromarray(image[0]).resize((30, 40), PillowImage.Resampling.BILINEAR)
    off = np.abs(resized(image, (40, 30), (False, False))[0].astype(int) - np.asarray(pillow))
    assert off.max() <= 1
    assert (off == 0).mean() > 0.5
