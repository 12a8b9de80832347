"""Heat maps laid over images, with the boxes that were found and those that are true."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Array = np.ndarray[Any, Any]

SIDE = 384
"""Width and height of either half, px."""

COLOURS = {
    0: (0, 0, 0),
    64: (0, 64, 255),
    128: (0, 220, 160),
    192: (255, 220, 0),
    255: (255, 40, 0),
}
"""Of a heat map, between black and red."""

TRUE, FOUND = (0, 255, 0), (255, 255, 255)


def overlay(image: Array, heat: Array, truth: Array, found: Array) -> Image.Image:
    """Draw an image with its true boxes, and beside it the heat map with what was found as well.

    Args:
        image: (H, W) in [0, 1].
        heat: (H, W) in [0, 255].
        truth: Boxes (n, 2, 2) in px of `image`, green.
        found: Boxes (m, 2, 2), white.
    """
    grey = _large(np.repeat((image.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, 2))
    scale = SIDE / np.array(image.shape)
    right = Image.blend(grey, _large(coloured(heat)), 0.4)
    for picture in (grey, right):
        _draw(picture, truth * scale[:, None], TRUE)
    _draw(right, found * scale[:, None], FOUND)
    both = Image.new("RGB", (2 * SIDE, SIDE))
    both.paste(grey, (0, 0))
    both.paste(right, (SIDE, 0))
    return both


def coloured(heat: Array) -> Array:
    """Return the colours (H, W, 3) uint8 of a heat map in [0, 255]."""
    levels = list(COLOURS)
    channels = [np.interp(heat, levels, [rgb[c] for rgb in COLOURS.values()]) for c in range(3)]
    return np.stack(channels, -1).astype(np.uint8)


def _large(pixels: Array) -> Image.Image:
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def _draw(picture: Image.Image, boxes: Array, colour: tuple[int, int, int]) -> None:
    pen = ImageDraw.Draw(picture)
    for (top, bottom), (left, right) in boxes.clip(0, SIDE).tolist():
        pen.rectangle(
            (left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2
        )
