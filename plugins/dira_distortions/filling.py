"""Distortions that fill blocks, or all but them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dira_core import Change, Distortion, Draws, Noise
from dira_distortions import (
    InnerCutoutOptions,
    NoiseInpaintOptions,
    NoiseOutpaintOptions,
    OuterCutoutOptions,
)
from dira_distortions.blocks import (
    Bounds,
    Numbers,
    Place,
    by_axis,
    cover,
    pixels,
    places,
    random_blocks,
    random_words,
)

Write = Callable[[np.ndarray, Place], None]
"""Writes something into a block of an image."""


Filled = InnerCutoutOptions | OuterCutoutOptions | NoiseInpaintOptions | NoiseOutpaintOptions


class Blocks(Distortion):
    """Fill random blocks, or all but them.

    Attributes:
        outside: Whether it is all but the blocks that is filled.
    """

    outside = False

    def __init__(self, options: Filled) -> None:
        super().__init__()
        self.options = options

    def bounds(self, shape: Sequence[int]) -> Bounds:
        """Return how large blocks are in images of a shape S."""
        return [pixels(part, shape) for part in self.options.side]

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S), filled."""
        shape = images.shape[2:]
        inside = cover(*self._blocks(self._words(draws, shape), shape), shape)
        new = filling(draws, images.shape[1:], self.options.fill).whole()
        return torch.where(inside != self.outside, new, images)

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what fills each image."""
        blocks = places(*self._blocks(self._words(draws, shape[1:]).numpy(), shape[1:]))
        writers = filling(draws, shape, self.options.fill).writers()
        paint = paint_outside if self.outside else paint_inside
        both = zip(blocks, writers, strict=True)
        return [partial(paint, blocks=those, write=write) for those, write in both]

    def _words(self, draws: Draws, shape: Sequence[int]) -> Tensor:
        return random_words(draws, "blocks", (self.options.blocks, 2 * len(shape) + 1))

    def _blocks(self, words: Numbers, shape: Sequence[int]) -> tuple[Numbers, Numbers]:
        return random_blocks(words, shape, self.bounds(shape), self.options)


class InnerCutout(Blocks):
    """Fill random blocks: at 224 px 18 % of the image by the defaults.

    Source: Haghighi et al., "DiRA", CVPR 2022, arXiv:2204.10437, and its public code.
    """


class OuterCutout(Blocks):
    """Fill all but random blocks: at 224 px 23 % of the image by the defaults.

    Source: Haghighi et al., "DiRA", CVPR 2022, arXiv:2204.10437, and its public code.
    """

    outside = True


class NoiseInpaint(Blocks):
    """Fill random blocks with noise.

    Source: Zhou et al., "Models Genesis", MICCAI 2019, arXiv:1908.06912; one block as in TransVW.
    """

    options: NoiseInpaintOptions

    def bounds(self, shape: Sequence[int]) -> Bounds:
        """Return how large blocks are in images of a shape S."""
        return by_axis(self.options.sides, shape) or [
            [max(1, extent // by) for extent in shape] for by in self.options.side
        ]


class NoiseOutpaint(Blocks):
    """Fill all but random blocks with noise.

    Source: Zhou et al., "Models Genesis", MICCAI 2019, arXiv:1908.06912.
    """

    options: NoiseOutpaintOptions
    outside = True

    def bounds(self, shape: Sequence[int]) -> Bounds:
        """Return how large blocks are in images of a shape S."""
        return by_axis(self.options.sides, shape) or super().bounds(shape)


@dataclass(frozen=True)
class Number:
    """One number everywhere in an image, its own in each: (B, 1, ...)."""

    values: Tensor

    def whole(self) -> Tensor:
        """Return it in a shape that broadcasts against images."""
        return self.values

    def writers(self) -> list[Write]:
        """Return what writes that of each image into a block of it; on the CPU."""
        return [partial(fill_block, value=value) for value in self.values.flatten().tolist()]


def filling(
    draws: Draws, shape: Sequence[int], fill: float | Literal["noise", "constant"]
) -> Noise | Number:
    """Return what takes the place of pixels of images (C, *S)."""
    if fill == "noise":
        return draws.noise("noise", shape)
    one = [1] * len(shape)
    if fill == "constant":
        return Number(draws.uniform("noise", shape=one))
    return Number(torch.full((draws.batch_size, *one), fill, device=draws.device))


def fill_block(image: np.ndarray, place: Place, value: float) -> None:
    """Put a value into a block of one image."""
    image[place] = value


def paint_inside(image: np.ndarray, blocks: Sequence[Place], write: Write) -> np.ndarray:
    """Write into blocks of one image."""
    for block in blocks:
        write(image, block)
    return image


def paint_outside(image: np.ndarray, blocks: Sequence[Place], write: Write) -> np.ndarray:
    """Write into one image everywhere but in blocks of it."""
    kept = [image[block].copy() for block in blocks]
    write(image, (slice(None),) * image.ndim)
    for block, before in zip(blocks, kept, strict=True):
        image[block] = before
    return image
