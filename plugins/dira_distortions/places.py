"""Distortions that move pixels to other places of the same image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dira_core import Change, Distortion, Draws
from dira_distortions import PatchSwapOptions, PixelShuffleOptions
from dira_distortions.blocks import Place, block_places, block_sides, pixels, places

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
        if images.device.type == "cpu" and side[..., 0].numel() <= FEW:
            return shuffled_one_by_one(images, first, side, draws)
        found = shuffled_source(first, side, shape, draws)
        image, there = (found >= 0).nonzero(as_tuple=True)
        shuffled = images.flatten(2).clone()
        shuffled[image, :, there] = images.flatten(2)[image, :, found[image, there] & PIXEL]
        return shuffled.view(images.shape)


FEW = 4096
"""Windows of a batch up to which a CPU is faster with one after the other than with all at once."""


def shuffled_one_by_one(images: Tensor, first: Tensor, side: Tensor, draws: Draws) -> Tensor:
    """Do what `shuffled_source` says, window by window: the same orders, the same pixels."""
    used = side.prod(-1).cumsum(1)
    keys = draws.integers("order", 0, 1 << 31, (int(used[:, -1].amax()),)).numpy()
    shuffled = images.clone()
    for image, result, windows, ends, own in zip(
        images.numpy(), shuffled.numpy(), places(first, side), used.tolist(), keys, strict=True
    ):
        begin = 0
        for window, end in zip(windows, ends, strict=True):
            there = image[window]
            order = own[begin:end].argsort(kind="stable")
            result[window] = there.reshape(len(image), -1)[:, order].reshape(there.shape)
            begin = end
    return shuffled


PIXEL = 0xFFFFFFFF
"""The bits of a pixel's position, below those of a window's number."""


def shuffled_source(first: Tensor, side: Tensor, shape: Sequence[int], draws: Draws) -> Tensor:
    """Shuffle windows, and say for each pixel where its value comes from.

    Windows of the same sides are shuffled together; an image's draws are dealt out to its windows
    in their order, so that a window's are its own whatever the batch.

    Args:
        first: (B, K, n) int64, first pixel of each window.
        side: (B, K, n) int64.
        shape: S, extents of the n axes.
        draws: Of the B images.

    Returns:
        (B, prod(S)) int64; -1 for pixels in no window. A pixel of several follows the last of them,
        whose number stands above the 32 bits of the position.
    """
    pixels, volume = math.prod(shape), side.prod(-1)
    strides = first.new_tensor([math.prod(shape[axis + 1 :]) for axis in range(len(shape))])
    corner = (first * strides).sum(-1)
    number = torch.arange(side.shape[1], device=first.device)
    image = torch.arange(len(first), device=first.device)[:, None]
    target = (corner + image * pixels).flatten()
    source = (corner | number << 32).flatten()  # the largest is that of the last window
    used = volume.cumsum(1)
    most = int(used[:, -1].amax())
    keys = draws.integers("order", 0, 1 << 31, (most,)).flatten()
    begin = (used - volume + image * most).flatten()
    found = first.new_full((len(first), pixels), -1)
    for sides, rows in alike(side.flatten(0, 1)):
        inside = offsets(sides, strides)
        own = torch.arange(len(inside), device=first.device) + begin[rows, None]
        there = source[rows, None] + inside[random_orders(keys[own])]
        here = target[rows, None] + inside
        found.view(-1).scatter_reduce_(0, here.flatten(), there.flatten(), "amax")
    return found


def alike(side: Tensor) -> Iterator[tuple[list[int], Tensor]]:
    """Yield all sides that windows have, with the windows that have them: side is (M, n) int64."""
    largest = side.amax(0) + 1
    code = side[:, 0]
    for axis in range(1, side.shape[1]):
        code = code * largest[axis] + side[:, axis]
    rows = code.argsort(stable=True)
    counts = code.bincount()
    for some in torch.split(rows, counts[counts > 0].tolist()):
        yield side[some[0]].tolist(), some


def offsets(size: Sequence[int], strides: Tensor) -> Tensor:
    """Return where the pixels of a block lie from its first one, in the flattened image."""
    along = [torch.arange(n, device=strides.device) * s for n, s in zip(size, strides, strict=True)]
    total: Tensor = along[0]
    for axis in along[1:]:
        total = (total[:, None] + axis).flatten()
    return total


def random_orders(keys: Tensor) -> Tensor:
    """Return permutations that sort each row of keys, (M, n) int64 below 2**31.

    The place is put below its key: numpy sorts such numbers ten times as fast as torch sorts pairs.
    """
    n = keys.shape[1]
    bits = max(1, (n - 1).bit_length())
    both: Tensor = keys << bits | torch.arange(n, device=keys.device)
    ordered: Tensor = (
        both.sort(dim=1).values if both.is_cuda else torch.from_numpy(np.sort(both.numpy()))
    )
    return ordered.bitwise_and((1 << bits) - 1)
