"""Cut images: random crops, and central squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dira_core.data.crops import centre_box, reduce_channels, soft_tissue
from dira_core.data.images import Images
from dira_core.data.pyramid import Box, crop_level, place
from dira_core.view_options import Lungs, sides_of

if TYPE_CHECKING:
    from dira_core.roles import Source
    from dira_core.types import Image


def cut(image: Image, box: Box, pixels: Tensor) -> None:
    """Write the crop of an image into `pixels`, (C, *S); see `place`. One channel is repeated."""
    channels, *size = pixels.shape
    place(reduce_channels(crop_level(image, box, size), channels), image.window, pixels)


def cut_best(image: Image, boxes: Sequence[Box], pixels: Tensor, lungs: Lungs | None) -> int:
    """Cut as `cut` does, at the first place that is mostly air, else at that with most air.

    Returns:
        Which of `boxes`; the first one if air is not asked for.
    """
    shares: list[float] = []
    for number, box in enumerate(boxes):
        cut(image, box, pixels)
        if lungs is None:
            return number
        shares.append(soft_tissue(pixels, lungs.above))
        if shares[-1] <= lungs.most:
            return number
    best = shares.index(min(shares))
    cut(image, boxes[best], pixels)
    return best


def whole_images(
    source: Source, indices: Sequence[int], size: int | Sequence[int], channels: int
) -> Tensor:
    """Return central squares of images without any augmentation, for probes and contact sheets.

    Returns:
        (B, channels, *size) float32 in [0, 1]; the next readable image for an unreadable one.
    """
    reader = Images(source, channels)
    images = [reader.readable(int(index))[1] for index in indices]
    boxes = [centre_box(image.pixels.shape[1:]) for image in images]
    pixels = torch.empty(len(images), channels, *sides_of(size, len(boxes[0])))
    for image, box, place_of in zip(images, boxes, pixels, strict=True):
        cut(image, box.tolist(), place_of)
    return pixels
