"""Where things lie in volumes: the body, the same place in another patient, a cube worth a word.

Boxes are (3, 2): first and last edge along depth, height and width, in voxels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dira_core import DataError, Image

BODY_PART = 0.05
"""Part of a slice that is brighter than the background where there is body."""

SOFT_TISSUE = -150
"""HU from which a voxel is soft tissue."""

MOST_SOFT = 0.15
"""Part of a cube's voxels that may be soft tissue, where only lung is wanted."""

LEAST_BODY = 0.5
"""Part of a cube's voxels that must be brighter than the background, elsewhere."""

OVERHANG = 0.125
"""Part of a cube's side that may lie outside of the volume; its edge is repeated there."""


def windowed(image: Image) -> Tensor:
    """Return a volume as (1, D, H, W) in [0, 1]; channels are averaged."""
    pixels = torch.from_numpy(np.asarray(image.pixels, np.float32)).mean(0, keepdim=True)
    low, high = image.window
    return ((pixels - low) / max(high - low, 1e-12)).clamp_(0, 1)


def background(volume: Tensor) -> float:
    """Return the brightness below which there is nothing: half of the mean."""
    return 0.5 * float(volume.mean())


def body_box(volume: Tensor) -> np.ndarray:
    """Return the box around the slices with body, (3, 2); all of it where that is not clear.

    Args:
        volume: (1, D, H, W) in [0, 1].
    """
    bright = (volume[0] > background(volume)).float()
    box = np.array([[0, extent] for extent in bright.shape], np.float64)
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        inside = (bright.mean(others) > BODY_PART).nonzero().flatten()
        if len(inside) > 1:
            box[axis] = int(inside[0]), int(inside[-1]) + 1
    return box


def carried_over(box: np.ndarray, body: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the box at the same place of another body: shift and stretch along each axis.

    The public code takes the same voxels of all volumes, however they lie in them.
    """
    stretch = (other[:, 1] - other[:, 0]) / (body[:, 1] - body[:, 0])
    carried: np.ndarray = other[:, :1] + (box - body[:, :1]) * stretch[:, None]
    return carried


def is_inside(box: np.ndarray, shape: np.ndarray) -> bool:
    """Say whether a box lies in a volume, but for a small overhang."""
    slack = OVERHANG * (box[:, 1] - box[:, 0])
    return bool((box[:, 0] >= -slack).all() and (box[:, 1] <= shape + slack).all())


def cut(volume: Tensor, box: np.ndarray, size: tuple[int, ...]) -> Tensor:
    """Return what is in a box, resampled linearly to (C, *size); edges are repeated outside.

    Args:
        volume: (C, D, H, W).
        box: Edges may be anywhere, also between voxels.
        size: Of the result.
    """
    axes = []
    for (first, last), count, extent in zip(box, size, volume.shape[1:], strict=True):
        centre = first + (torch.arange(count, dtype=torch.float64) + 0.5) * (last - first) / count
        axes.append((2 * centre / extent - 1).float())
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flip(-1)
    return grid_sample(volume[None], grid[None], padding_mode="border", align_corners=False)[0]


def soft_tissue(hounsfield: Tensor, depth: int) -> float:
    """Return how much of a cube is soft tissue, by the rule of the public code.

    A voxel counts 1 where it is soft tissue itself, 1/2 where the one above it is.

    Args:
        hounsfield: (depth, H, W) in HU, or with one slice more, which is only above.
        depth: Of the cube.
    """
    soft = hounsfield >= SOFT_TISSUE
    above = torch.zeros_like(soft[:depth])
    above[: len(soft) - 1] = soft[1 : depth + 1]
    return float(torch.where(soft[:depth], 1.0, 0.5 * above.float()).mean())


def is_worth_a_word(image: Image, box: np.ndarray, lung: bool) -> bool:
    """Say whether a cube shows something: mostly lung, or else mostly body.

    Args:
        image: Where it lies; in HU if `lung`.
        box: Whole voxels.
        lung: Whether cubes with much soft tissue are refused.

    Raises:
        DataError: Its values are not in HU, and lung is wanted.
    """
    (z1, z2), (y1, y2), (x1, x2) = box.astype(int).tolist()
    if lung:
        if image.pixels.dtype.kind == "u":
            raise DataError(
                "--lung tells tissue by HU, and these values cannot be below 0: give the CTs "
                "themselves instead of a cache, which keeps no HU, or leave --lung out"
            )
        cube = image.pixels[0, z1 : z2 + 1, y1:y2, x1:x2]
        return soft_tissue(torch.from_numpy(np.asarray(cube, np.float32)), z2 - z1) <= MOST_SOFT
    volume = windowed(image)
    bright = volume[0, z1:z2, y1:y2, x1:x2] > background(volume)
    return bool(bright.float().mean() >= LEAST_BODY)
