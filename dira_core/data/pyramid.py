"""An image at full, half, quarter size and so on; crops from the level just above what is wanted.

The box of such a crop lies on the grid of its level, so that the level's pixels show exactly what
the box says. Pure functions.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dira_core.filters import filtered, resized, resizing
from dira_core.types import Image
from dira_core.view_options import sides_of

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


def on_grid(boxes: Tensor, shapes: Tensor, size: int | Sequence[int], depths: Tensor) -> Tensor:
    """Move crop boxes onto the grid of the level they are cut from: by at most a pixel of it.

    Args:
        boxes: First and last edge along each axis in px, (B, D, 2) int64.
        shapes: Sizes of the source images, (B, D) int64.
        size: Side of the crops to be made, or their sides.
        depths: Levels each image has below the full one, (B,) int64; boxes of images without any
            are left as they are.

    Returns:
        (B, D, 2) int64, within the images.
    """
    sides = boxes[..., 1] - boxes[..., 0]
    deepest = int(depths.max())
    wanted = torch.tensor(sides_of(size, sides.shape[1])) << torch.arange(1, deepest + 1)[:, None]
    fine_enough = (sides[:, None] >= wanted).all(-1).sum(1)
    step = (1 << fine_enough.minimum(depths))[:, None]
    room = shapes // step
    cells = ((sides + step // 2) // step).minimum(room)
    first = ((boxes.sum(-1) - cells * step + step) // (2 * step)).clamp(min=0)  # the middle stays
    first = first.minimum(room - cells)
    return torch.stack([first, first + cells], -1) * step[..., None]


Box = Sequence[Sequence[int]]
"""First and last edge along each axis in px; swapped where it is mirrored."""


def crop_level(image: Image, box: Box, size: int | Sequence[int]) -> np.ndarray:
    """Cut a box out of an image and resize it, antialiased; see `excerpt`.

    Returns:
        (C, *size) in the units of the image, of any memory layout: uint8 if it is stored so, else
        float32.
    """
    pixels = excerpt(image, box, size)
    sides, mirrored = sides_of(size, len(box)), [first > last for first, last in box]
    if pixels.dtype == np.uint8:
        return resized(pixels, sides, mirrored)
    found = zip(pixels.shape[1:], sides, mirrored, strict=True)
    return filtered(pixels, [resizing(n, m, turn) for n, m, turn in found])


def directions(box: Box) -> list[slice]:
    """Return slices that mirror what a box says is mirrored."""
    return [slice(None, None, -1 if first > last else None) for first, last in box]


def excerpt(image: Image, box: Box, size: int | Sequence[int]) -> np.ndarray:
    """Cut a box out of an image, from the level just above the size it will have.

    Args:
        image: Its smallest level that is not smaller than the result, and on whose grid the box
            lies, is read.
        box: Where; what it says of mirrors is left to others.
        size: Length of every side of the result, or of each.

    Returns:
        (C, *S) as stored and not mirrored; not smaller than `size` where the box is not.
    """
    fits = zip(box, sides_of(size, len(box)), strict=True)
    shrinks = min(abs(last - first) // side for (first, last), side in fits)
    bits = functools.reduce(operator.or_, itertools.chain(*box))
    level = 0
    while level < len(image.levels) and shrinks >> level + 1 and not bits >> level & 1:
        level += 1
    pixels = image.levels[level - 1] if level else image.pixels
    return pixels[:, *(slice(min(edges) >> level, max(edges) >> level) for edges in box)]


def full_bytes(image: Image) -> bool:
    """Return whether an image is of bytes whose window is all they can be."""
    return image.pixels.dtype == np.uint8 and image.window == (0, 255)


def place(crop: np.ndarray, window: tuple[float, float], pixels: Tensor) -> None:
    """Map a window to [0, 1], clip, and write the result where it belongs.

    Args:
        crop: (C, *S), of any type and memory layout.
        window: The values that become 0 and 1; a window without width gives 0.
        pixels: (C, *S) float32, or with one channel of the crop repeated. Or uint8: it takes the
            levels of a crop of bytes as they are.
    """
    pixels.numpy()[...] = crop
    if pixels.dtype == torch.uint8:
        return
    low, high = window
    scale = 1 / (high - low) if low != high else 0.0
    (pixels.sub_(low) if low else pixels).mul_(scale).clamp_(0, 1)
