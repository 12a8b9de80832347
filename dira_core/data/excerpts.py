"""Parts of images that are resized on the device, all of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dira_core.filters import resizing_matrices


@dataclass(frozen=True)
class Excerpts:
    """Parts of B images as they are stored, to be resized where the views are made.

    Attributes:
        pixels: (B, C, *longest) of integers or float32; along each axis a part starts at 0, and
            what lies beyond its side is 0.
        sides: Of each part, (B, D) int64.
        window: The values that become 0 and 1, (B, 2) float32.
        size: Sides of the crops to be made.
    """

    pixels: Tensor
    sides: Tensor
    window: Tensor
    size: tuple[int, ...]

    def pin_memory(self) -> Excerpts:
        """Return these parts in page-locked memory."""
        return replace(self, pixels=self.pixels.pin_memory())

    def on(self, device: torch.device) -> Tensor:
        """Return crops (B, C, *size) in float32 in [0, 1], resized as `crop_level` does."""
        crops = self.pixels.to(device, non_blocking=True).float()
        for axis, side in enumerate(self.size):
            longest = crops.shape[axis + 2]
            weights = resizing_matrices(self.sides[:, axis], side, longest)
            crops = _along(crops, weights.to(device, non_blocking=True), axis + 2)
        low, high = self.window.to(device).view(-1, 2, *[1] * (crops.dim() - 1)).unbind(1)
        scale = torch.where(high == low, 0.0, 1 / (high - low))
        return ((crops - low) * scale).clamp_(0, 1)


def collected(
    parts: Sequence[np.ndarray],
    windows: Sequence[tuple[float, float]],
    channels: int,
    size: tuple[int, ...],
) -> Excerpts:
    """Put parts of images together.

    Args:
        parts: (C, *S) each, integers or floats; one channel is repeated.
        windows: Of each.
        channels: Of the crops.
        size: Sides of the crops.
    """
    kind = np.result_type(*parts)
    kept = kind if kind in (np.uint8, np.uint16) else np.dtype(np.float32)
    sides = np.array([part.shape[1:] for part in parts])
    pixels = np.zeros((len(parts), channels, *sides.max(0)), kept)
    for part, place in zip(parts, pixels, strict=True):
        place[:, *map(slice, part.shape[1:])] = part
    return Excerpts(torch.from_numpy(pixels), torch.from_numpy(sides), torch.tensor(windows), size)


def _along(images: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Multiply each image (B, ...) along an axis by its own matrix, (B, size, length)."""
    turned = images.movedim(axis, -1)
    lines = turned.flatten(1, -2) @ weights.mT
    return lines.reshape(*turned.shape[:-1], -1).movedim(-1, axis)
