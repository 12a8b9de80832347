"""Where blocks lie in an image: their sides and places, drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress, islice, repeat
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dira_core import Draws, RecipeError
from dira_distortions import BlockOptions


def pixels(part: float, shape: Sequence[int], least: int = 1) -> list[int]:
    """Return a part of each axis of `shape` in whole pixels, never below `least`."""
    return [max(least, round(part * extent)) for extent in shape]


WORD_BITS = 31
"""Bits of a random word that decides on a side or a place."""

Numbers = TypeVar("Numbers", Tensor, np.ndarray)
"""int64; numpy starts an operation in a fraction of torch's time, devices have torch alone."""


def random_words(draws: Draws, slot: str, shape: Sequence[int]) -> Tensor:
    """Return (B, *shape) int64 words for `between`; one call for many decisions, as calls cost."""
    words = draws.bits(slot, math.prod(shape)).view(draws.batch_size, *shape)
    return words.bitwise_right_shift_(64 - WORD_BITS).bitwise_and_((1 << WORD_BITS) - 1)


def between(words: Numbers, low: Numbers | int, high: Numbers) -> Numbers:
    """Turn random words into whole numbers that are uniform in low..high inclusive."""
    found: Numbers = (words * (high - low + 1) >> WORD_BITS) + low
    return found


def block_places(
    words: Numbers, side: Numbers, shape: Sequence[int], margin: Sequence[int]
) -> Numbers:
    """Return the first pixel of each block, uniform where it keeps `margin` to the border.

    Args:
        words: (B, ..., n), random.
        side: (B, ..., n).
        shape: Extents of the n axes in px.
        margin: In px, by axis; a block too large for it lies as near to the middle as it can.

    Returns:
        (B, ..., n).
    """
    room = like(side, shape) - side
    low = least(like(side, margin), room >> 1)
    return between(words, low, room - low)


def like(numbers: Numbers, values: Sequence[int]) -> Numbers:
    """Return values as numbers of a kind, (n,)."""
    if isinstance(numbers, Tensor):
        return numbers.new_tensor(values)
    return np.array(values)


def least(some: Numbers, others: Numbers) -> Numbers:
    """Return the smaller ones of some numbers and others."""
    if isinstance(some, Tensor):
        return torch.minimum(some, others)
    smaller: np.ndarray = np.minimum(some, others)
    return smaller


def cover(first: Tensor, side: Tensor, shape: Sequence[int]) -> Tensor:
    """Return what blocks cover together, (B, 1, *S) bool.

    A block is a product of ranges, so a sum over blocks of products counts how many lie on a pixel;
    the last axis goes into one matrix product.

    Args:
        first: (B, K, n) int64, first pixel of each block along n axes.
        side: (B, K, n) int64; a block with a side of 0 covers nothing.
        shape: S.
    """
    ranges = []
    for axis, extent in enumerate(shape):
        offset = torch.arange(extent, device=first.device) - first[..., axis, None]
        ranges.append(((offset >= 0) & (offset < side[..., axis, None])).float())
    lead = ranges[0]
    for along in ranges[1:-1]:
        lead = (lead[..., None] * along[:, :, None]).flatten(2)
    return (lead.mT @ ranges[-1] > 0).view(len(first), 1, *shape)


Bounds = Sequence[Sequence[int]]
"""Smallest and largest side of a block in px, n numbers each."""


def random_blocks(
    words: Numbers, shape: Sequence[int], bounds: Bounds, options: BlockOptions
) -> tuple[Numbers, Numbers]:
    """Return first pixel and side of up to `options.blocks` random blocks, (B, K, n).

    Those that a stop left out have a side of 0.

    Args:
        words: (B, K, 2 n + 1), random.
        shape: Extents of the n axes.
        bounds: Of the sides.
        options: Say how many, and how far from the border.
    """
    n, (low, high) = len(shape), bounds
    side = between(words[..., :n], like(words, low), like(words, high))
    margin = pixels(options.margin, shape, least=0)
    first = block_places(words[..., n : 2 * n], side, shape, margin)
    if options.blocks == 1:  # a stop leaves out those after it
        return first, side
    stops = words[..., -1] < options.stop * (1 << WORD_BITS)
    placed = stops.cumsum(1) == stops
    return first, side * placed[..., None]


def by_axis(sides: Sequence[tuple[float, float]] | None, shape: Sequence[int]) -> Bounds | None:
    """Return the smallest and largest side along each axis in px, or None if there are no bounds.

    Raises:
        RecipeError: There are bounds for more or fewer axes.
    """
    if sides is None:
        return None
    if len(sides) != len(shape):
        raise RecipeError(
            f"blocks have sides along {len(sides)} axes, the images have {len(shape)}: give "
            "`sides` as many, or leave it out for `side`"
        )
    return [
        [max(1, round(part * n)) for part, n in zip(parts, shape, strict=True)]
        for parts in zip(*sides, strict=True)
    ]


Place = tuple[slice, ...]
"""Where a block is in an image (C, *S)."""


def places(first: np.ndarray, side: np.ndarray) -> list[list[Place]]:
    """Return where the blocks of each image are; blocks with a side of 0 are nowhere."""
    edges = np.stack([first, first + side]).reshape(2, -1, first.shape[-1])
    along = (map(slice, *both) for both in edges.transpose(2, 0, 1).tolist())
    blocks = zip(repeat(slice(None)), *along, strict=False)
    kept: list[list[bool]] = np.all(side, axis=-1).tolist()
    return [list(compress(islice(blocks, len(own)), own)) for own in kept]
