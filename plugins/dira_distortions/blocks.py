"""Distortions that fill blocks, and how blocks are placed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress, islice, repeat
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dira_core import Change, Distortion, Draws, Noise, RecipeError
from dira_distortions import (
    BlockOptions,
    InnerCutoutOptions,
    NoiseInpaintOptions,
    NoiseOutpaintOptions,
    OuterCutoutOptions,
)


def pixels(part: float, shape: Sequence[int], least: int = 1) -> list[int]:
    """Return a part of each axis of `shape` in whole pixels, never below `least`."""
    return [max(least, round(part * extent)) for extent in shape]


def block_sides(
    draws: Draws, low: Sequence[int], high: Sequence[int], count: int, slot: str = "side"
) -> Tensor:
    """Return (B, count, n) int64: sides of blocks along n axes, uniform in low..high inclusive."""
    smallest, largest = draws.index.new_tensor([low, high]).unbind(0)
    return draws.integers(slot, smallest, largest + 1, (count, len(low)))


def block_places(
    draws: Draws, side: Tensor, shape: Sequence[int], margin: Sequence[int], slot: str = "first"
) -> Tensor:
    """Return the first pixel of each block, uniform where it keeps `margin` to the border.

    Args:
        side: (B, ..., n) int64.
        shape: Extents of the n axes in px.
        margin: In px, by axis; a block too large for it lies as near to the middle as it can.

    Returns:
        (B, ..., n) int64.
    """
    extent, border = draws.index.new_tensor([list(shape), margin]).unbind(0)
    room = extent - side
    low = torch.minimum(border, room // 2)
    return draws.integers(slot, low, room - low + 1, side.shape[1:])


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


def random_blocks(
    draws: Draws,
    shape: Sequence[int],
    low: Sequence[int],
    high: Sequence[int],
    options: BlockOptions,
) -> tuple[Tensor, Tensor]:
    """Return first pixel and side of up to `options.blocks` random blocks, (B, K, n) int64.

    Those that a stop left out have a side of 0.
    """
    side = block_sides(draws, low, high, options.blocks)
    first = block_places(draws, side, shape, pixels(options.margin, shape, least=0))
    if options.blocks == 1:  # a stop leaves out those after it
        return first, side
    stops = draws.bernoulli("stop", options.stop, (options.blocks,)).long()
    placed = stops.cumsum(1) == stops
    return first, side * placed[..., None]


def blocks_by_part(
    draws: Draws, shape: Sequence[int], side: tuple[float, float], options: BlockOptions
) -> tuple[Tensor, Tensor]:
    """Return random blocks whose sides lie between two parts of the crop's side."""
    low, high = (pixels(part, shape) for part in side)
    return random_blocks(draws, shape, low, high, options)


def by_axis(
    sides: Sequence[tuple[float, float]] | None, shape: Sequence[int]
) -> list[list[int]] | None:
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


def places(first: Tensor, side: Tensor) -> list[list[Place]]:
    """Return where the blocks of each image are; blocks with a side of 0 are nowhere."""
    starts, sides = first.numpy(), side.numpy()  # which makes lists in a fraction of torch's time
    edges = np.stack([starts, starts + sides]).reshape(2, -1, starts.shape[-1])
    along = (map(slice, *both) for both in edges.transpose(2, 0, 1).tolist())
    blocks = zip(repeat(slice(None)), *along, strict=False)
    kept: list[list[bool]] = np.all(sides, axis=-1).tolist()
    return [list(compress(islice(blocks, len(own)), own)) for own in kept]


def fill_inside(image: np.ndarray, blocks: Sequence[Place], fill: float) -> np.ndarray:
    """Put a value into blocks of one image, in place."""
    for block in blocks:
        image[block] = fill
    return image


def fill_outside(image: np.ndarray, blocks: Sequence[Place], fill: float) -> np.ndarray:
    """Return an image with a value everywhere but in the blocks."""
    filled = np.full_like(image, fill)
    for block in blocks:
        filled[block] = image[block]
    return filled


class InnerCutout(Distortion):
    """Fill random blocks: at 224 px 18 % of the image by the defaults.

    Source: Haghighi et al., "DiRA", CVPR 2022, arXiv:2204.10437, and its public code.
    """

    def __init__(self, options: InnerCutoutOptions) -> None:
        super().__init__()
        self.options = options

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S) with `fill` in the blocks."""
        blocks = self._blocks(draws, images.shape[2:])
        covered = cover(*blocks, images.shape[2:])
        return images.masked_fill(covered, self.options.fill)

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what fills each image."""
        blocks = places(*self._blocks(draws, shape[1:]))
        return [partial(fill_inside, blocks=those, fill=self.options.fill) for those in blocks]

    def _blocks(self, draws: Draws, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        return blocks_by_part(draws, shape, self.options.side, self.options)


class OuterCutout(Distortion):
    """Fill all but random blocks: at 224 px 23 % of the image by the defaults.

    Source: Haghighi et al., "DiRA", CVPR 2022, arXiv:2204.10437, and its public code.
    """

    def __init__(self, options: OuterCutoutOptions) -> None:
        super().__init__()
        self.options = options

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S) with `fill` outside the blocks."""
        blocks = self._blocks(draws, images.shape[2:])
        covered = cover(*blocks, images.shape[2:])
        return images.masked_fill(~covered, self.options.fill)

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what fills each image."""
        blocks = places(*self._blocks(draws, shape[1:]))
        return [partial(fill_outside, blocks=those, fill=self.options.fill) for those in blocks]

    def _blocks(self, draws: Draws, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        return blocks_by_part(draws, shape, self.options.side, self.options)


class NoiseInpaint(Distortion):
    """Fill random blocks with noise.

    Source: Zhou et al., "Models Genesis", MedIA 2021, arXiv:1908.06912; one block as in TransVW.
    """

    def __init__(self, options: NoiseInpaintOptions) -> None:
        super().__init__()
        self.options = options

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S) with noise in the blocks."""
        shape = images.shape[2:]
        low, high = by_axis(self.options.sides, shape) or [
            [max(1, extent // by) for extent in shape] for by in self.options.side
        ]
        blocks = random_blocks(draws, shape, low, high, self.options)
        new = filling(draws, images.shape[1:], self.options.fill)
        if images.device.type != "cpu":
            return torch.where(cover(*blocks, shape), new.whole(), images)
        painted = images.clone()
        for row, (result, there) in enumerate(zip(painted.numpy(), places(*blocks), strict=True)):
            for place in there:
                result[place] = new.inside(row, place)
        return painted


@dataclass(frozen=True)
class Number:
    """The same number everywhere in an image, another in each: (B, 1, ...)."""

    values: Tensor

    def whole(self) -> Tensor:
        """Return it in a shape that broadcasts against images."""
        return self.values

    def inside(self, row: int, place: Place) -> np.ndarray:
        """Return that of one image; on the CPU."""
        value: np.ndarray = self.values[row].numpy()
        return value


def filling(
    draws: Draws, shape: Sequence[int], fill: Literal["noise", "constant"]
) -> Noise | Number:
    """Return what takes the place of pixels of images (C, *S)."""
    if fill == "noise":
        return draws.noise("noise", shape)
    return Number(draws.uniform("noise", shape=[1] * len(shape)))


class NoiseOutpaint(Distortion):
    """Fill all but random blocks with noise.

    Source: Zhou et al., "Models Genesis", MedIA 2021, arXiv:1908.06912.
    """

    def __init__(self, options: NoiseOutpaintOptions) -> None:
        super().__init__()
        self.options = options

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S) with noise outside the blocks."""
        shape = images.shape[2:]
        low, high = by_axis(self.options.sides, shape) or [
            pixels(part, shape) for part in self.options.side
        ]
        blocks = random_blocks(draws, shape, low, high, self.options)
        new = filling(draws, images.shape[1:], self.options.fill).whole()
        if images.device.type != "cpu":
            return torch.where(cover(*blocks, shape), images, new)
        painted = new if new.shape == images.shape else new.expand_as(images).clone()
        for result, image, there in zip(
            painted.numpy(), images.numpy(), places(*blocks), strict=True
        ):
            for place in there:
                result[place] = image[place]
        return painted
