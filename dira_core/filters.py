"""Filter images along their axes: resize them, blur them. Pure functions.

Along an axis, a line of the result is a weighted sum of lines of the image; which lines and weights
is a `Taps`. On a CPU that is one pass over memory for each axis, whatever the filter.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Taps(NamedTuple):
    """Which lines along an axis make up each line of a result.

    Attributes:
        lines: (T,) int64, lines of the image, those of the first result first.
        starts: (n,) int64, where the lines of each result start in `lines`.
        weights: (T,) float32.
    """

    lines: Tensor
    starts: Tensor
    weights: Tensor


def filtered(image: np.ndarray, taps: Sequence[Taps]) -> np.ndarray:
    """Filter an image along each of its axes.

    Args:
        image: (C, *S), integers or floats.
        taps: One for each axis of S.

    Returns:
        (C, *n) float32, in memory of its own.
    """
    channels, *sides = image.shape
    turned = _rows(image[0] if channels == 1 else np.moveaxis(image, 0, -1))
    for axis, (lines, starts, weights) in enumerate(taps):  # the next axis comes to the front
        rows = turned.view(sides[axis], -1)
        sums = torch.embedding_bag(rows, lines, starts, mode=0, per_sample_weights=weights)[0]
        sides[axis] = len(sums)
        turned = _turned(sums, len(sums))
    return turned.numpy().reshape(channels, *sides)


def resized(image: np.ndarray, size: Sequence[int], mirrored: Sequence[bool]) -> np.ndarray:
    """Resize bytes by the triangle filter of `resizing`, rounded after each axis as Pillow does.

    Args:
        image: (C, *S) uint8.
        size: Sides of the result.
        mirrored: Whether the last pixel comes first, along each axis.

    Returns:
        (C, *size) uint8, in memory of its own.
    """
    channels, *sides = image.shape
    rows = image[0] if channels == 1 else np.moveaxis(image, 0, -1)
    for axis, (n, turn) in enumerate(zip(size, mirrored, strict=True)):
        rows = rows.reshape(sides[axis], -1)[:: -1 if turn else 1]
        columns = rows.shape[1]
        padded = _padded(rows)
        # Torch resizes four channels of bytes at once: here, four neighbours along the other axes.
        height, width = padded.shape
        fours = padded.as_strided((1, 4, height, width // 4), (height * width, 1, width, 4))
        shrunk = F.interpolate(fours, (n, width // 4), mode="bilinear", antialias=True)
        sides[axis] = n
        rows = _turned(shrunk, n).numpy().reshape(width, n)[:columns]  # the next axis is in front
    return rows.reshape(channels, *sides)


def _turned(rows: Tensor, n: int) -> Tensor:
    """Return the numbers of n rows, which lie in memory without gaps, column by column.

    This is ShuffleNet's shuffle, in small square tiles: as fast as a plain copy, where
    `rows.T.contiguous()` takes three times as long.
    """
    count = rows.numel()
    return F.channel_shuffle(rows.as_strided((1, count, 1, 1), (count, 1, count, count)), n)


def _padded(rows: np.ndarray) -> Tensor:
    """Return rows of bytes whose length is a multiple of four, copied unless they are that."""
    columns = rows.shape[1]
    if columns % 4 == 0 and rows.flags.carray:
        return torch.from_numpy(rows)
    padded = np.empty((len(rows), columns + -columns % 4), np.uint8)
    padded[:, :columns] = rows
    return torch.from_numpy(padded)


def _rows(image: np.ndarray) -> Tensor:
    """Return an image in rows of float32, copied unless it is that already."""
    if image.dtype == np.float32 and image.flags.carray:  # torch takes none that is read-only
        return torch.from_numpy(image)
    rows = np.empty(image.shape, np.float32)
    rows[...] = image
    return torch.from_numpy(rows)


@functools.lru_cache(4096)
def resizing(side: int, size: int, mirrored: bool = False) -> Taps:
    """Return how `side` pixels become `size` by the triangle filter, the last first if mirrored.

    A triangle as wide as two pixels of the result, or of the source where those are wider: what
    Pillow and torchvision call bilinear, antialiased.
    """
    scale = side / size
    reach = max(scale, 1.0)
    centre = (np.arange(size)[:: -1 if mirrored else 1, None] + 0.5) * scale
    first = np.maximum(np.floor(centre - reach), 0).astype(np.int64)
    line = first + np.arange(math.ceil(2 * reach) + 1)
    weights = np.maximum(0.0, 1.0 - np.abs(line + 0.5 - centre) / reach) * (line < side)
    weights /= weights.sum(1, keepdims=True)
    used = weights > 0
    starts = used.sum(1).cumsum() - used.sum(1)
    values = weights[used].astype(np.float32)
    return Taps(torch.from_numpy(line[used]), torch.from_numpy(starts), torch.from_numpy(values))


def resizing_matrices(sides: Tensor, size: int, longest: int) -> Tensor:
    """Return how images of different sides become `size` pixels; see `resizing`.

    Args:
        sides: Pixels of each image along the axis, (B,) int64.
        size: Pixels of the results.
        longest: No side is longer.

    Returns:
        (B, size, longest) float32, 0 beyond an image's side.
    """
    matrices = torch.zeros(len(sides), size, longest)
    for matrix, side in zip(matrices, sides.tolist(), strict=True):
        taps = resizing(side, size)
        counts = torch.cat([taps.starts, torch.tensor([len(taps.lines)])]).diff()
        matrix[torch.arange(size).repeat_interleave(counts), taps.lines] = taps.weights
    return matrices


@functools.lru_cache(16)  # the axes of an image are often alike
def blurring(extent: int, half: tuple[float, ...]) -> Taps:
    """Return a symmetric filter whose image goes on beyond its edges as in a mirror.

    Args:
        extent: Pixels along the axis.
        half: The kernel from its middle outwards; shorter than the axis. The pixel at an edge is
            not repeated.
    """
    lines, starts = _mirrored(extent, len(half) - 1)
    weights = np.empty((extent, 2 * len(half) - 1), np.float32)
    weights[:] = [*half[:0:-1], *half]
    return Taps(lines, starts, torch.from_numpy(weights.ravel()))


@functools.lru_cache(256)
def _mirrored(extent: int, radius: int) -> tuple[Tensor, Tensor]:
    """Return the lines around each line, and where those of each start."""
    around = (torch.arange(extent)[:, None] + torch.arange(-radius, radius + 1)).abs()
    last = extent - 1
    lines = last - (last - around).abs()
    return lines.flatten(), torch.arange(extent) * (2 * radius + 1)
