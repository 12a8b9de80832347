"""An image at full, half, quarter size and so on; crops from the level just above what is wanted.

The box of such a crop lies on the grid of its level, so that the level's pixels show exactly what
the box says. Pure functions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dira_core.types import Image

SMALLEST_SIDE = 8
"""Pixels along each axis that a level has at least; no crop is smaller."""


def levels(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an image at 1/2, 1/4, ... of its size, each pixel the rounded mean of its block.

    Where a block is cut off by the far edge, the pixels at the edge count twice.

    Args:
        pixels: (C, *S), uint8 or uint16.

    Yields:
        (C, *ceil(S / 2**k)) in the type of `pixels`, as long as every axis has `SMALLEST_SIDE`.
    """
    sums, count, most = pixels, 1, int(np.iinfo(pixels.dtype).max)
    while min(sums.shape[1:]) >= 2 * SMALLEST_SIDE:
        for axis in range(1, pixels.ndim):
            count *= 2
            sums = _pairs(sums, axis, np.min_scalar_type(most * count + count // 2))
        rounded = sums + sums.dtype.type(count // 2)
        yield (rounded >> sums.dtype.type(count.bit_length() - 1)).astype(pixels.dtype)


def _pairs(sums: np.ndarray, axis: int, wide: np.dtype) -> np.ndarray:
    """Add neighbours along an axis; the last of an odd number of pixels to itself."""
    before = (slice(None),) * axis
    first, second = sums[(*before, slice(0, None, 2))], sums[(*before, slice(1, None, 2))]
    if first.shape != second.shape:
        second = np.concatenate([second, first[(*before, slice(-1, None))]], axis)
    total: np.ndarray = np.add(first, second, dtype=wide)
    return total


def on_grid(boxes: Tensor, shapes: Tensor, size: int, depths: Tensor) -> Tensor:
    """Move crop boxes onto the grid of the level they are cut from: by at most a pixel of it.

    Args:
        boxes: First and last edge along each axis in px, (B, D, 2) int64.
        shapes: Sizes of the source images, (B, D) int64.
        size: Side of the crops to be made.
        depths: Levels each image has below the full one, (B,) int64; boxes of images without any
            are left as they are.

    Returns:
        (B, D, 2) int64, within the images.
    """
    sides = boxes[..., 1] - boxes[..., 0]
    deepest = int(depths.max())
    wanted = size << torch.arange(1, deepest + 1)
    fine_enough = (sides.amin(1, keepdim=True) >= wanted).sum(1)
    step = (1 << fine_enough.minimum(depths))[:, None]
    room = shapes // step
    cells = ((sides + step // 2) // step).minimum(room)
    first = ((boxes.sum(-1) - cells * step + step) // (2 * step)).clamp(min=0)  # the middle stays
    first = first.minimum(room - cells)
    return torch.stack([first, first + cells], -1) * step[..., None]


def crop_level(image: Image, box: Tensor, size: int) -> np.ndarray:
    """Cut a box out of an image with levels and resize it, antialiased.

    Args:
        image: Its smallest level that is not smaller than the result, and on whose grid the box
            lies, is read.
        box: First and last edge along each axis in px, (D, 2) int64.
        size: Length of every side of the result.

    Returns:
        (C, size, ...) float32 in the units of the image, of any memory layout.
    """
    edges: list[list[int]] = box.tolist()
    level, pixels = 0, image.pixels
    for smaller in image.levels:
        step = 2 << level
        if any(a % step or b % step or b - a < size * step for a, b in edges):
            break
        level, pixels = level + 1, smaller
    inside = (slice(a >> level, b >> level) for a, b in edges)
    return resize(pixels[(slice(None), *inside)], size)


def place(crop: np.ndarray, window: tuple[float, float], pixels: Tensor) -> None:
    """Map a window to [0, 1], clip, and write the result where it belongs.

    Args:
        crop: (C, *S) float32, of any memory layout.
        window: The values that become 0 and 1; a window without width gives 0.
        pixels: (C, *S) float32, or with one channel of the crop repeated.
    """
    low, high = window
    scale = 1 / (high - low) if low != high else 0.0
    np.multiply(crop, scale, out=pixels.numpy())
    if low:
        pixels -= low * scale
    pixels.clamp_(0, 1)


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize an image by the triangle filter, as wide as a source pixel needs: antialiased.

    Pillow's and torchvision's BILINEAR, for any number of axes. Along one axis a pixel is a
    weighted sum of rows; after each axis the next one comes first.

    Args:
        pixels: (C, *S), integers or floats.
        size: Length of every side of the result.

    Returns:
        (C, size, ...) float32, of any memory layout.
    """
    turn = (*range(1, pixels.ndim), 0)
    turned = pixels.transpose(turn)
    for _ in pixels.shape[1:]:
        rest = turned.shape[1:]
        rows = _spread(turned)
        resized = _sums_of_rows(torch.from_numpy(rows), filter_taps(len(rows), size)).numpy()
        turned = resized[:, : math.prod(rest)].reshape(size, *rest).transpose(turn)
    return turned


def _spread(pixels: np.ndarray) -> np.ndarray:
    """Copy (n, *rest) into rows of float32 that start in different parts of a processor's cache.

    The next axis is read down the columns: rows a multiple of 64 bytes long would push each other
    out of the cache.
    """
    width = math.prod(pixels.shape[1:])
    rows = np.empty((len(pixels), width + (8 - width) % 16), np.float32)
    rows[:, :width].reshape(pixels.shape)[...] = pixels
    return rows


class Taps(NamedTuple):
    """Which rows make up each row of a result.

    Attributes:
        rows: (T,) int64, rows of the source, those of the first result first.
        starts: (size,) int64, where the rows of each result start in `rows`.
        weights: (T,) float32; those of one result sum to 1.
    """

    rows: Tensor
    starts: Tensor
    weights: Tensor


def _sums_of_rows(table: Tensor, taps: Taps) -> Tensor:
    """Return weighted sums of rows: (n, M) float32 -> (size, M)."""
    sums = torch.embedding_bag(
        table, taps.rows, taps.starts, mode=0, per_sample_weights=taps.weights
    )
    return sums[0]


@functools.lru_cache(4096)
def filter_taps(side: int, size: int) -> Taps:
    """Return how `side` pixels become `size` by the triangle filter."""
    weights = filter_weights(side, size)
    result, row = np.nonzero(weights)
    starts = np.searchsorted(result, np.arange(size))
    values = weights[result, row].astype(np.float32)
    return Taps(torch.from_numpy(row), torch.from_numpy(starts), torch.from_numpy(values))


def filter_weights(side: int, size: int) -> np.ndarray:
    """Return the weight of each of `side` pixels in each of `size`: (size, side) float64."""
    scale = side / size
    reach = max(scale, 1.0)
    centre = (np.arange(size)[:, None] + 0.5) * scale
    near = np.maximum(0.0, 1.0 - np.abs(np.arange(side) + 0.5 - centre) / reach)
    weights: np.ndarray = near / near.sum(1, keepdims=True)
    return weights
