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
from dira_distortions.blocks import (
    Numbers,
    Place,
    between,
    block_places,
    like,
    pixels,
    places,
    random_words,
)

TRIES = 8
"""Places tried for the second block of a swap; two small blocks overlap once in 70 tries."""


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
    words: Tensor, here: Tensor, side: Tensor, shape: Sequence[int], margin: Sequence[int]
) -> Tensor:
    """Return a second place for each block that does not overlap the first, uniform among those.

    Where all places that are tried overlap (a crop with hardly room for two), it is the first one.

    Args:
        words: (B, K, tries, n) int64, random.
        here: (B, K, n) int64, first pixel of each block at its first place.
        side: (B, K, n) int64.
    """
    tried = side[:, :, None].expand_as(words)
    there = block_places(words, tried, shape, margin)
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
        swaps = zip(*(places(first.numpy(), side.numpy()) for first in (here, there)), strict=True)
        return [
            partial(swapped, one=one, two=two, at_once=not self.options.disjoint)
            for one, two in swaps
        ]

    def _swaps(self, draws: Draws, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return side, first and second place of the blocks of each swap, (B, swaps, n) int64."""
        margin = pixels(self.options.margin, shape, least=0)
        words = random_words(draws, "swaps", (self.options.swaps, 2 + TRIES, len(shape)))
        low, high = (words.new_tensor(pixels(part, shape)) for part in self.options.side)
        side = between(words[:, :, 0], low, high)
        here = block_places(words[:, :, 1], side, shape, margin)
        if self.options.disjoint:
            return side, here, places_apart(words[:, :, 2:], here, side, shape, margin)
        return side, here, block_places(words[:, :, 2], side, shape, margin)


def swapped(
    image: np.ndarray, one: Sequence[Place], two: Sequence[Place], at_once: bool
) -> np.ndarray:
    """Swap pairs of blocks of one image; at once: all read what was there before the first swap."""
    source = image.copy() if at_once else image
    for here, there in zip(one, two, strict=True):
        first = source[here].copy()
        image[here], image[there] = source[there], first
    return image


class PixelShuffle(Distortion):
    """Shuffle pixels inside small windows; all read the original, and the last window wins.

    Source: Zhou et al., "Models Genesis", MICCAI 2019, arXiv:1908.06912: local pixel shuffling.
    """

    def __init__(self, options: PixelShuffleOptions) -> None:
        super().__init__()
        self.options = options

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S) with pixels shuffled."""
        shape = images.shape[2:]
        slots = math.prod(self._largest(shape))
        moved = []
        for row in torch.split(torch.arange(len(images), device=images.device), 1):
            own = draws.select(row)
            keys = own.bits("order", self.options.windows * slots)
            source = source_of(*self._windows(self._words(own, shape), shape), keys, shape)
            moved.append(images[row].flatten(2)[:, :, source])
        return torch.cat(moved).view(images.shape)

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what shuffles the pixels of each image."""
        changes: list[Change] = []
        at_once = max(1, AT_ONCE // self.options.windows)
        for row in range(0, draws.batch_size, at_once):
            own = draws.select(torch.arange(row, min(row + at_once, draws.batch_size)))
            first, side = self._windows(self._words(own, shape[1:]).numpy(), shape[1:])
            most = int(side.prod(-1).sum(-1).max())
            moves = moves_of(first, side, own.bits("order", most).numpy(), shape[1:])
            changes += [partial(shuffled, here=here, there=there) for here, there in moves]
        return changes

    def _words(self, draws: Draws, shape: Sequence[int]) -> Tensor:
        return random_words(draws, "windows", (self.options.windows, 2, len(shape)))

    def _windows(self, words: Numbers, shape: Sequence[int]) -> tuple[Numbers, Numbers]:
        """Return first pixel and side of each window, (B, K, n), by random words (B, K, 2, n)."""
        side = between(words[:, :, 0], 1, like(words, self._largest(shape)))
        return block_places(words[:, :, 1], side, shape, [0] * len(shape)), side

    def _largest(self, shape: Sequence[int]) -> list[int]:
        return [max(1, extent // self.options.largest) for extent in shape]


AT_ONCE = 4096
"""Windows whose pixels stay in a processor's cache while all are put in order."""

KEY_BITS = 31
"""Bits of the random numbers that put pixels in order."""


def moves_of(
    first: np.ndarray, side: np.ndarray, keys: np.ndarray, shape: Sequence[int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Shuffle the windows of some images; say which pixel of each goes where.

    One sort serves all: the number of a window stands above the random numbers of its pixels, and
    those above the rank of each pixel in it.

    Args:
        first: (B, K, n) int64, first pixel of each window along n axes.
        side: (B, K, n) int64.
        keys: (B, most pixels of all windows) int64 of 64 random bits, window by window.
        shape: S, extents of the n axes.

    Returns:
        For each image where its pixels go and where they come from, (N,) int64 each, positions in
        the flattened image, window by window.
    """
    volume = side.prod(-1)
    used = volume.sum(-1)
    window = np.repeat(np.arange(volume.size), volume.ravel())
    begin = (volume.cumsum() - volume.ravel()).astype(np.int32)[window]
    rank = np.arange(len(window), dtype=np.int32) - begin
    here, rest, stride = np.zeros_like(rank), rank, 1
    for axis in reversed(range(len(shape))):
        extent, corner = (of[..., axis].astype(np.int32).take(window) for of in (side, first))
        rest, along = np.divmod(rest, extent)
        here += (corner + along) * stride
        stride *= shape[axis]
    bits = int(volume.max()).bit_length()
    order = keys[np.arange(keys.shape[1]) < used[:, None]]
    order = order >> 64 - KEY_BITS & (1 << KEY_BITS) - 1 | window << KEY_BITS
    order = order << bits | rank
    order.sort(kind="stable")  # which takes little time, as windows are in order already
    there = here[begin + (order & (1 << bits) - 1)]
    end = used.cumsum().tolist()
    return [(here[a:b], there[a:b]) for a, b in zip([0, *end[:-1]], end, strict=True)]


def shuffled(image: np.ndarray, here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Move pixels of one image; of those that go to the same place the last one stays."""
    for channel in image:
        channel.put(here, channel.take(there))
    return image


PIXEL = 0xFFFFFFFF
"""The bits of a pixel's position, below those of a window's number."""


def source_of(first: Tensor, side: Tensor, keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Shuffle the windows of one image, as `moves_of` does; say where each pixel comes from.

    Args:
        first: (1, K, n) int64, first pixel of each window along n axes.
        side: (1, K, n) int64.
        keys: (1, K * most pixels of a window) int64 of 64 random bits, window by window.
        shape: S, extents of the n axes.

    Returns:
        (prod(S),) int64; a pixel of several windows follows the last of them.
    """
    slots, volume = keys.shape[1] // side.shape[1], side.prod(-1, keepdim=True)
    here = block_pixels(first, side, shape, slots)
    rank = torch.arange(slots, device=first.device)
    own = keys[0][volume.cumsum(1) - volume + rank] >> 64 - KEY_BITS & (1 << KEY_BITS) - 1
    bits, missing = slots.bit_length(), rank >= volume
    order = (own << bits | rank).masked_fill_(missing, (1 << bits + KEY_BITS) - 1)
    order = order.sort(-1).values.bitwise_and_((1 << bits) - 1).clamp_(max=slots - 1)
    number = torch.arange(side.shape[1], device=first.device)[:, None]
    source = (here.gather(-1, order) | number << 32).masked_fill_(missing, -1)
    unmoved = torch.arange(math.prod(shape), device=first.device) - (1 << 32)
    return unmoved.scatter_reduce_(0, here.flatten(), source.flatten(), "amax") & PIXEL
