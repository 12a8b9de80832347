"""Choose the pixel values that map to 0 and 1."""

from __future__ import annotations

import numpy as np

from dira_core.data import Decoded, Window
from dira_core.errors import DataError, RecipeError
from dira_core.types import Image

MIN_SIDE = 8
"""Fewest pixels a side; anything smaller is an icon or a damaged header."""

MIN_SLICES = 2
"""Fewest pixels along the shortest side of a volume: thick slices are few."""

PERCENTILES = (0.5, 99.5)
SAMPLE = 2**18
"""Pixels a percentile is taken of, spread evenly; all of them where there are fewer."""

SPREAD = 2654435761
"""A prime near 2**32 over the golden ratio: its multiples spread over axes of any length.

Equal steps do not: 512 slices of 512 x 512 pixels in steps of 512 are one column.
"""


def to_image(decoded: Decoded, window: Window) -> Image:
    """Check the pixels, choose the window, and turn them so that large values are bright.

    Raises:
        DataError: There is nothing to see: too small, constant, or not finite.
    """
    pixels = decoded.pixels
    shortest, *sides = sorted(pixels.shape[1:])
    volume = len(sides) > 1
    if min(sides) < MIN_SIDE or shortest < (MIN_SLICES if volume else MIN_SIDE):
        size = " x ".join(map(str, pixels.shape[:0:-1]))
        few = f", or has fewer than {MIN_SLICES} slices" if volume else ""
        raise DataError(f"smaller than {MIN_SIDE} px a side{few}: {size}")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise DataError("pixels that are not finite")
    if (pixels == pixels[(slice(None), *[slice(1)] * (pixels.ndim - 1))]).all():
        raise DataError("constant image")
    low, high = choose_window(decoded, window)
    if decoded.invert:
        mirror = decoded.full[0] + decoded.full[1]
        inside = np.clip(pixels, *decoded.full)
        pixels = np.subtract(mirror, inside, dtype=np.float64).astype(pixels.dtype)
        low, high = mirror - high, mirror - low
    shown = float(low), float(high)
    return Image(pixels, shown, decoded.spacing, affine=decoded.affine, stored=decoded.stored)


def choose_window(decoded: Decoded, window: Window) -> tuple[float, float]:
    """Return the two pixel values that map to 0 and 1, before any inversion.

    A window of the file that misses all its pixels is not believed.

    Raises:
        RecipeError: The two values given are not in order.
    """
    if isinstance(window, tuple):
        if not window[0] < window[1]:
            raise RecipeError(f"window: the first value must be the smaller one, got {window}")
        return window
    if window == "full":
        return decoded.full
    if window == "auto":
        own, pixels = decoded.window, decoded.pixels
        if own and own[0] < own[1] and own[0] < pixels.max() and own[1] > pixels.min():
            return own
        if decoded.bits <= 8:
            return decoded.full
    return percentiles(decoded)


def percentiles(decoded: Decoded) -> tuple[float, float]:
    """Return percentiles 0.5 and 99.5 of the pixels inside the image; their range if equal."""
    inside = decoded.pixels if decoded.padding is None else decoded.pixels[:, ~decoded.padding]
    flat = inside.reshape(-1)
    some = flat if flat.size <= SAMPLE else flat[np.arange(SAMPLE) * SPREAD % flat.size]
    low, high = np.percentile(some, PERCENTILES)
    return (low, high) if low < high else (flat.min(), flat.max())
