"""Distortions of intensity: pixels keep their places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from dira_core import Change, Distortion, Draws, blurring, filtered
from dira_distortions import (
    BezierOptions,
    GaussianBlurOptions,
    IntensityJitterOptions,
    SolarizeOptions,
)

CURVE_POINTS = 1000
"""Points of an intensity curve, and of the table made of it."""

TABLE_STEPS = 2**15
"""Intensities that are told apart: twice as fine as float32 needs to be for 14-bit images."""


def by_image(values: Tensor, images: Tensor) -> Tensor:
    """Return one value an image, (B,), in a shape that broadcasts against (B, C, *S)."""
    return values.view(-1, *[1] * (images.dim() - 1))


class IntensityJitter(Distortion):
    """Change brightness, then contrast, or the other way round, as torchvision's ColorJitter.

    Brightness multiplies; contrast blends with the image's mean (over pixels and channels, which
    for grey images is torchvision's); each clamps to [0, 1].
    """

    def __init__(self, options: IntensityJitterOptions) -> None:
        super().__init__()
        self.brightness = options.brightness
        self.contrast = options.contrast

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S) in [0, 1]."""
        brightness, contrast, brightness_first = self._factors(draws)
        # A factor of 1 changes nothing, so three steps serve both orders without a second batch.
        before = by_image(brightness.where(brightness_first, 1.0), images)
        after = by_image(brightness.where(~brightness_first, 1.0), images)
        contrast = by_image(contrast, images)
        images = (images * before).clamp_(0, 1)
        mean = by_image(images.flatten(1).mean(1), images)
        return (
            images.mul_(contrast).add_((1 - contrast) * mean).clamp_(0, 1).mul_(after).clamp_(0, 1)
        )

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what changes each image in place."""
        factors = (each.tolist() for each in self._factors(draws))
        return [
            partial(jitter, brightness=b, contrast=c, brightness_first=first)
            for b, c, first in zip(*factors, strict=True)
        ]

    def _factors(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Return brightness and contrast of each image, and whether brightness comes first."""
        brightness, contrast, order = draws.uniform("factors", -1, 1, shape=(3,)).unbind(1)
        return 1 + self.brightness * brightness, 1 + self.contrast * contrast, order < 0


def jitter(
    image: np.ndarray, brightness: float, contrast: float, brightness_first: bool
) -> np.ndarray:
    """Change brightness and contrast of one image (C, *S) in [0, 1], in place.

    All steps rise, so that they are one line between two bounds.
    """
    pixels = torch.from_numpy(image)
    if brightness_first:
        if brightness > 1:
            pixels.clamp_(max=1 / brightness)
        shift = (1 - contrast) * brightness * pixels.mean()
        most = min(1.0, contrast + float(shift))
    else:
        shift = (1 - contrast) * brightness * pixels.mean()
        most = min(1.0, brightness)
    torch.add(shift, pixels, alpha=contrast * brightness, out=pixels).clamp_(0, most)
    return image


class GaussianBlur(Distortion):
    """Blur with a Gaussian of its own for every image; sigma is relative to each axis.

    The kernel reaches three sigmas, rounded up to pixels. The border is mirrored without repeating
    the edge pixel, so no black comes in.
    """

    def __init__(self, options: GaussianBlurOptions) -> None:
        super().__init__()
        self.low = options.low
        self.high = options.high

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S), blurred."""
        for axis, half in enumerate(self._kernels(draws, images.shape[2:]), start=2):
            images = blur_along(images, axis, half)
        return images

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what blurs each image, with no more of a kernel than it needs."""
        kernels = [half.tolist() for half in self._kernels(draws, shape[1:])]
        return [
            partial(blur, halves=[tuple(filter(None, half)) for half in halves])
            for halves in zip(*kernels, strict=True)
        ]

    def _kernels(self, draws: Draws, shape: Sequence[int]) -> list[Tensor]:
        """Return the right half of each image's kernel along each axis, (B, r + 1)."""
        part = draws.uniform("sigma", self.low, self.high)
        reach = {extent: min(math.ceil(3 * self.high * extent), extent - 1) for extent in shape}
        half = {extent: gaussian(part * extent, radius) for extent, radius in reach.items()}
        return [half[extent] for extent in shape]


def blur(image: np.ndarray, halves: Sequence[tuple[float, ...]]) -> np.ndarray:
    """Filter one image (C, *S) along each axis with a symmetric kernel."""
    taps = [blurring(n, half) for n, half in zip(image.shape[1:], halves, strict=True)]
    return filtered(image, taps)


def gaussian(sigma: Tensor, radius: int) -> Tensor:
    """Return the right halves of Gaussian kernels that sum to 1: sigma (B,) -> (B, radius + 1).

    They end, with zeros, where three sigmas do.
    """
    offset = torch.arange(radius + 1, device=sigma.device)
    half = (-0.5 * (offset / sigma[:, None]) ** 2).exp()
    half = half.masked_fill(offset >= 3 * sigma[:, None] + 1, 0.0)
    return half / (2 * half.sum(1, keepdim=True) - half[:, :1])


def blur_along(images: Tensor, axis: int, half: Tensor) -> Tensor:
    """Filter each image along one axis with its own symmetric kernel, reflecting at the border.

    Shifted sums instead of a convolution: exact in float32 under any autocast, and as fast.

    Args:
        images: (B, C, *S).
        half: (B, r + 1), the kernel from its middle outwards; r is below the axis' extent.
    """
    radius, extent = half.shape[1] - 1, images.shape[axis]
    widths = [0] * (2 * (images.dim() - 2))
    last = images.dim() - 1 - axis
    widths[2 * last : 2 * last + 2] = radius, radius
    wide = pad(images, widths, mode="reflect")
    weights = [by_image(weight, images) for weight in half.unbind(1)]
    blurred = images * weights[0]
    for offset in range(1, radius + 1):
        left = wide.narrow(axis, radius - offset, extent)
        right = wide.narrow(axis, radius + offset, extent)
        blurred += (left + right).mul_(weights[offset])
    return blurred


class Solarize(Distortion):
    """Turn pixels from a threshold on into one minus their value, as torchvision's solarize."""

    def __init__(self, options: SolarizeOptions) -> None:
        super().__init__()
        self.threshold = options.threshold

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S) in [0, 1]."""
        return images.where(images < self.threshold, 1 - images)

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what inverts the bright pixels of each image."""
        return [partial(solarized, threshold=self.threshold)] * draws.batch_size


def solarized(image: np.ndarray, threshold: float) -> np.ndarray:
    """Invert the bright pixels of one image, in place."""
    np.subtract(1, image, out=image, where=image >= threshold)
    return image


class Bezier(Distortion):
    """Map intensities by a random cubic Bezier curve, rising or falling.

    The curve goes through (0, 0), (u, u'), (v, v'), (1, 1) with independent U(0, 1) control points,
    which makes both coordinates monotone; a falling curve has its second coordinate reversed.
    Source: Zhou et al., "Models Genesis", MICCAI 2019, arXiv:1908.06912: non-linear transformation.
    """

    def __init__(self, options: BezierOptions) -> None:
        super().__init__()
        self.inverted = options.inverted

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S) in [0, 1]; intensities outside of [0, 1] count as its ends."""
        rows = zip(self._tables(draws), images.flatten(1), strict=True)
        return torch.stack([look_up(table, values) for table, values in rows]).view(images.shape)

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what maps the intensities of each image."""
        return [partial(mapped, table=table) for table in self._tables(draws)]

    def _tables(self, draws: Draws) -> Tensor:
        """Return the curve of each image at equal steps from 0 to 1, (B, TABLE_STEPS)."""
        control = draws.uniform("control", shape=(2, 2))
        x, y = bezier(control[:, 0]), bezier(control[:, 1])
        inverted = draws.bernoulli("inverted", self.inverted)
        table = tabulate(x, torch.where(inverted[:, None], y.flip(1), y))
        return interpolate(table[:, None], TABLE_STEPS, mode="linear", align_corners=True)[:, 0]


def mapped(image: np.ndarray, table: Tensor) -> np.ndarray:
    """Map the intensities of one image, in place."""
    image[...] = look_up(table, torch.from_numpy(image).flatten()).view(image.shape).numpy()
    return image


def bezier(control: Tensor) -> Tensor:
    """Return a coordinate of curves from 0 to 1: inner control points (B, 2) -> (B, points)."""
    t = torch.linspace(0, 1, CURVE_POINTS, device=control.device)
    first, second = control[:, :1], control[:, 1:]
    return 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3


def tabulate(x: Tensor, y: Tensor) -> Tensor:
    """Return y at equal steps of x in [0, 1]; x and y are (B, points), x rises from 0 to 1."""
    steps = torch.linspace(0, 1, x.shape[1], device=x.device).expand_as(x).contiguous()
    right = torch.searchsorted(x, steps, right=True).clamp_(max=x.shape[1] - 1)
    left = right - 1
    x_left, x_right = x.gather(1, left), x.gather(1, right)
    between = ((steps - x_left) / (x_right - x_left).clamp(min=1e-12)).clamp_(0, 1)
    return torch.lerp(y.gather(1, left), y.gather(1, right), between)


def look_up(table: Tensor, values: Tensor) -> Tensor:
    """Read a table over [0, 1] at the nearest places: (points,), (N,) -> (N,).

    By short integers: what this costs is memory, and little of it stays in a cache.
    """
    last = len(table) - 1
    return table.index_select(0, (values * last).add_(0.5).clamp_(0, last).int())
