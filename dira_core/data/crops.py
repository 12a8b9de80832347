"""Where random crops lie, and what of them is looked at: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from dira_core.draws import Draws

TRIES = 10
"""Attempts at a crop that fits into its image, as torchvision's RandomResizedCrop makes."""


def crop_boxes(
    shapes: Tensor, draws: Draws, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Draw one crop of every image, by the law of torchvision's RandomResizedCrop.

    The part of the image is uniform, the ratio of the last two axes log-uniform; the first of ten
    tries that fits is taken, else the largest central piece within the ratios. A third axis takes
    its share of the part: every side shrinks by part**(1/D).

    Args:
        shapes: Sizes of the source images, (B, D) int64.
        draws: Of the B images.
        scale: Smallest and largest part of the image's area (volume) that a crop covers.
        ratio: Smallest and largest width over height.

    Returns:
        First and last edge along each axis in px, (B, D, 2) int64.
    """
    whole, (least, most), (low, high) = shapes.double(), scale, ratio
    unit = draws.uniform("size", shape=(TRIES, 2)).double()
    part = least + (most - least) * unit[..., :1]
    stretch = low * (high / low) ** unit[..., 1:]
    side = whole[:, -2:].prod(1, keepdim=True).sqrt()
    square = torch.cat([whole[:, :-2], side, side], dim=1)
    sides = square[:, None] * part ** (1 / shapes.shape[1])
    sides[..., -2:] *= torch.cat([stretch**-0.5, stretch**0.5], dim=-1)
    sides = sides.round()
    fits = ((sides > 0) & (sides <= whole[:, None])).all(-1)
    first = sides[torch.arange(len(sides)), fits.int().argmax(1)]
    found = fits.any(1, keepdim=True)
    size = torch.where(found, first, _within(whole, low, high)).long()
    anywhere = draws.integers("place", 0, shapes - size + 1, shape=shapes.shape[1:])
    start = torch.where(found, anywhere, (shapes - size) // 2)
    return torch.stack([start, start + size], dim=-1)


def _within(whole: Tensor, low: float, high: float) -> Tensor:
    """Return the largest size (B, D) whose width over height lies within low and high."""
    height, width = whole[:, -2], whole[:, -1]
    ratio = (width / height).clamp(low, high)
    fitted = torch.stack([width / ratio, height * ratio], dim=1).round().clamp(min=1)
    return torch.cat([whole[:, :-2], fitted.minimum(whole[:, -2:])], dim=1)


def centre_box(shape: Sequence[int]) -> Tensor:
    """Return the box (D, 2) of the central square of an image; a third axis is taken whole."""
    side = min(shape[-2:])
    sizes = [*shape[:-2], side, side]
    starts = [(full - size) // 2 for full, size in zip(shape, sizes, strict=True)]
    return torch.tensor([[start, start + size] for start, size in zip(starts, sizes, strict=True)])


def soft_tissue(crop: Tensor, above: float) -> float:
    """Return how much of a crop (C, *S) in [0, 1] is soft tissue, as a part of it.

    A voxel counts fully if it is bright, and half if the next one along the first of three axes is.

    Source: the filter of Models Genesis (arXiv:1908.06912) and TransVW (arXiv:2102.10680).
    """
    bright = (crop >= above).any(0)
    score = bright.float()
    if bright.dim() == 3:
        score[:-1] += 0.5 * (bright[1:] & ~bright[:-1])
    return float(score.mean())


def reduce_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Turn colour (3, *S) into luminance (1, *S) where one channel is asked for (ITU-R BT.601).

    Bytes stay bytes, rounded like Pillow's `convert("L")`; others become float32.
    """
    if len(pixels) != 3 or channels != 1:
        return pixels
    if pixels.dtype == np.uint8:
        red, green, blue = pixels.astype(np.uint32)
        grey: np.ndarray = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
        return np.expand_dims(grey, 0).astype(np.uint8)
    red, green, blue = pixels.astype(np.float32)
    luminance: np.ndarray = np.expand_dims(0.299 * red + 0.587 * green + 0.114 * blue, 0)
    return luminance
