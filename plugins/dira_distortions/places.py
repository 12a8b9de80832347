"""Distortions that move pixels to other places of the same image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dira_core import Change, Distortion, Draws
from dira_distortions import PatchSwapOptions, PixelShuffleOptions
from dira_distortions.blocks import Place, block_places, block_sides, pixels, places

TRIES = 8
"""Places tried for the second block of a swap; two small blocks overlap once in 70 tries."""

WINDOWS_AT_ONCE = 128
"""Windows shuffled by one call; more would only take more memory."""


def block_pixels(first: Tensor, side: Tensor, shape: Sequence[int], slots: int) -> Tensor:
    """List the pixels of blocks, row by row.

    Args:
        first: (B, K, n) int64, first pixel of each block along n axes.
        side: (B, K, n) int64.
        shape: S, extents of the n axes.
        slots: Length of the lists; a block with fewer pixels repeats its last one.

    Returns:
        (B, K, slots) int64, positions in the flattened image.
    """
    rank = torch.arange(slots, device=first.device)
    rank = torch.minimum(rank, side.prod(-1, keepdim=True) - 1)
    position, stride = torch.zeros_like(rank), 1
    for axis in reversed(range(len(shape))):
        along = side[..., axis, None]
        position += (first[..., axis, None] + rank % along) * stride
        rank = rank // along
        stride *= shape[axis]
    return position


def places_apart(
    draws: Draws, here: Tensor, side: Tensor, shape: Sequence[int], margin: Sequence[int]
) -> Tensor:
    """Return a second place for each block that does not overlap the first, uniform among those.

    Where `TRIES` places all overlap (a crop with hardly room for two), it is the first place again.

    Args:
        here: (B, K, n) int64, first pixel of each block at its first place.
        side: (B, K, n) int64.
    """
    tried = side[:, :, None].expand(-1, -1, TRIES, -1)
    there = block_places(draws, tried, shape, margin, "there")
    apart = ((there - here[:, :, None]).abs() >= tried).any(-1)
    chosen = apart.byte().argmax(2)[..., None, None].expand(-1, -1, 1, len(shape))
    return torch.where(apart.any(2)[..., None], there.gather(2, chosen).squeeze(2), here)


class PatchSwap(Distortion):
    """Swap pairs of small blocks of the same size: 6 % of the image by the defaults.

    Source: Chen et al., MedIA 2019 ("context restoration"), as DiRA does it, arXiv:2204.10437.
    """

    def __init__(self, options: PatchSwapOptions) -> None:
        super().__init__()
        self.options = options

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S) with blocks swapped."""
        shape = images.shape[2:]
        high = pixels(self.options.side[1], shape)
        side, here, there = self._swaps(draws, shape)
        pairs = [block_pixels(first, side, shape, math.prod(high)) for first in (here, there)]
        swapped = images.flatten(2).clone()
        source = swapped if self.options.disjoint else images.flatten(2)
        for swap in range(self.options.swaps):
            one, two = (p[:, None, swap].expand(-1, images.shape[1], -1) for p in pairs)
            from_one, from_two = source.gather(2, one), source.gather(2, two)
            swapped.scatter_(2, one, from_two).scatter_(2, two, from_one)
        return swapped.view(images.shape)

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what swaps the blocks of each image."""
        side, here, there = self._swaps(draws, shape[1:])
        swaps = zip(places(here, side), places(there, side), strict=True)
        return [
            partial(swapped, one=one, two=two, at_once=not self.options.disjoint)
            for one, two in swaps
        ]

    def _swaps(self, draws: Draws, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return side, first and second place of the blocks of each swap, (B, swaps, n) int64."""
        low, high = (pixels(part, shape) for part in self.options.side)
        margin = pixels(self.options.margin, shape, least=0)
        side = block_sides(draws, low, high, self.options.swaps)
        here = block_places(draws, side, shape, margin, "here")
        if self.options.disjoint:
            return side, here, places_apart(draws, here, side, shape, margin)
        return side, here, block_places(draws, side, shape, margin, "there")


def swapped(
    image: np.ndarray, one: Sequence[Place], two: Sequence[Place], at_once: bool
) -> np.ndarray:
    """Swap pairs of blocks of one image; at once: all read what was there before the first swap."""
    source = image.copy() if at_once else image
    for here, there in zip(one, two, strict=True):
        first, second = source[here].copy(), source[there].copy()
        image[here], image[there] = second, first
    return image


class PixelShuffle(Distortion):
    """Shuffle pixels inside small windows; all read the original, and the last window wins.

    Source: Zhou et al., "Models Genesis", MedIA 2021, arXiv:1908.06912: local pixel shuffling.
    """

    def __init__(self, options: PixelShuffleOptions) -> None:
        super().__init__()
        self.options = options

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S) with pixels shuffled."""
        shape = images.shape[2:]
        largest = [max(1, extent // self.options.largest) for extent in shape]
        side = block_sides(draws, [1] * len(shape), largest, self.options.windows)
        first = block_places(draws, side, shape, [0] * len(shape))
        source = torch.arange(math.prod(shape), device=images.device).expand(len(images), -1)
        for start in range(0, self.options.windows, WINDOWS_AT_ONCE):
            some = slice(start, start + WINDOWS_AT_ONCE)
            here = block_pixels(first[:, some], side[:, some], shape, math.prod(largest))
            inside = side[:, some].prod(-1)
            source = shuffled_source(source, here, inside, draws.child(str(start)))
        source = source[:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, source).view(images.shape)


def shuffled_source(source: Tensor, here: Tensor, inside: Tensor, draws: Draws) -> Tensor:
    """Shuffle windows, and say for each pixel where its value now comes from.

    Args:
        source: (B, N) int64, where the N pixels' values came from so far.
        here: (B, K, slots) int64, the pixels of each window.
        inside: (B, K) int64, how many of the slots a window uses.

    Returns:
        (B, N) int64; a pixel of several windows follows the last of them.
    """
    windows, slots = here.shape[1:]
    used = torch.arange(slots, device=here.device) < inside[..., None]
    keys = draws.uniform("order", shape=(windows, slots)).masked_fill_(~used, 2.0)
    there = here.gather(2, keys.argsort(dim=2, stable=True)).flatten(1)
    turn = torch.arange(windows * slots, device=here.device).view(windows, slots)
    turn = turn.where(used, -1).flatten(1)
    last = torch.full_like(source, -1).scatter_reduce(1, here.flatten(1), turn, "amax")
    return torch.where(last < 0, source, there.gather(1, last.clamp(min=0)))
