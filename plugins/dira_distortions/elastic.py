"""The distortion that pushes pixels around by smooth random fields."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from dira_core import Change, Distortion, Draws
from dira_distortions import ElasticOptions

REACH = 4
"""Sigmas after which a Gaussian is cut off, as in SciPy."""

NEGLIGIBLE = 1e-4
"""Waves along an axis that are weaker than this, against the strongest, are left out."""

PLANE = 2
"""The last axes, along which pixels move."""


class Elastic(Distortion):
    """Move every pixel within its plane by two smooth random fields; nothing moves along depth.

    A field is noise, U(-1, 1) for every pixel and 0 around the image, smoothed by a Gaussian along
    all axes, times a number. What comes from outside is mirrored. At the defaults and 64 x 64 x 32
    voxels that number is 991 and sigma is 8 voxels: the elastic transformation of TransVW. Sums of
    so many numbers are normal, so a field is drawn from its covariance, by few numbers.

    Source: Haghighi et al., "Transferable Visual Words", TMI 2021, arXiv:2102.10680; Simard et al.,
    "Best Practices for Convolutional Neural Networks", ICDAR 2003.
    """

    def __init__(self, options: ElasticOptions) -> None:
        super().__init__()
        self.options = options

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S), bent."""
        waves = self._waves(images.shape[2:], images.device)
        return displace(images, fields_of(self._weights(draws, waves), waves))

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what bends each image."""
        waves = self._waves(shape[1:], draws.device)
        return [partial(bent, weights=own, waves=waves) for own in self._weights(draws, waves)]

    def _waves(self, shape: Sequence[int], device: torch.device) -> list[Tensor]:
        """Return waves along each axis, those along the last times how far pixels are pushed."""
        waves = [waves_along(extent, self.sigma(shape)).to(device) for extent in shape]
        return [*waves[:-1], waves[-1] * (self.alpha(shape) / math.sqrt(3))]

    def _weights(self, draws: Draws, waves: Sequence[Tensor]) -> Tensor:
        """Return standard normal weights of the waves, (B, 2, ranks of the waves)."""
        return draws.normal("field", (PLANE, *(len(along) for along in waves)))

    def sigma(self, shape: Sequence[int]) -> float:
        """Return how far noise is smoothed, in px."""
        return self.options.sigma * max(shape)

    def alpha(self, shape: Sequence[int]) -> float:
        """Return what smoothed noise is multiplied by: see `strength` of the options."""
        loudness: float = (2 * math.sqrt(math.pi) * self.sigma(shape)) ** (len(shape) / 2)
        return self.options.strength * max(shape) * loudness * math.sqrt(3)


def bent(image: np.ndarray, weights: Tensor, waves: Sequence[Tensor]) -> np.ndarray:
    """Bend one image (C, *S) by fields of weights (2, ranks of the waves)."""
    fields = fields_of(weights[None], waves)
    moved: np.ndarray = displace(torch.from_numpy(image)[None], fields)[0].numpy()
    return moved


def fields_of(weights: Tensor, waves: Sequence[Tensor]) -> Tensor:
    """Return sums of products of waves: (B, 2, ranks) by (rank, extent) each -> (B, 2, *S)."""
    fields = weights
    for axis, wave in enumerate(waves, start=2):
        fields = (fields.movedim(axis, -1) @ wave).movedim(-1, axis)
    return fields


@functools.lru_cache(64)
def waves_along(extent: int, sigma: float) -> Tensor:
    """Return waves whose sum, by standard normal weights, is smoothed standard normal noise.

    They are the principal components of the Gaussian filter with zeros around: (rank, extent).
    """
    radius = int(REACH * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    place = np.arange(extent)
    apart = np.abs(place - place[:, None])
    smoothing = np.exp(-0.5 * (apart / sigma) ** 2) * (apart <= radius) / kernel.sum()
    left, strength, _ = np.linalg.svd(smoothing)
    kept = strength > NEGLIGIBLE * strength[0]
    return torch.from_numpy((left * strength).T[kept].astype(np.float32))


def displace(images: Tensor, fields: Tensor) -> Tensor:
    """Read each pixel at another place of its plane, with linear interpolation and a mirror around.

    Args:
        images: (B, C, *S).
        fields: How far down and how far right to look, in px: (B, 2, *S).
    """
    planes, (down, right) = by_plane(images), by_plane(fields).unbind(1)
    height, width = planes.shape[-PLANE:]
    grid = down.new_empty(*down.shape, PLANE)  # the last axis first, from -1 to 1
    torch.add(centres(width, images.device), right, alpha=2 / width, out=grid[..., 0])
    torch.add(centres(height, images.device)[:, None], down, alpha=2 / height, out=grid[..., 1])
    moved: Tensor = grid_sample(planes, grid, padding_mode="reflection", align_corners=False)
    if images.dim() == planes.dim():
        return moved
    return moved.view(len(images), -1, *moved.shape[1:]).movedim(2, 1).contiguous()


def centres(extent: int, device: torch.device) -> Tensor:
    """Return where the pixels of an axis lie if it goes from -1 to 1."""
    return (2 * torch.arange(extent, device=device) + 1) / extent - 1


def by_plane(images: Tensor) -> Tensor:
    """Return the planes of images (B, C, *S) as images of their own: (B * D, C, H, W)."""
    return images if images.dim() == 4 else images.movedim(2, 1).flatten(0, 1)
