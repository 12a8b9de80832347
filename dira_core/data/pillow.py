"""Decode PNG, JPEG and TIFF by Pillow."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from dira_core.data import Decoded, check_size

PHOTOMETRIC = 262
"""TIFF tag; 0 is MinIsWhite, which Pillow inverts for 1 and 8 bits only."""


def decode(file: BinaryIO, *, kind: str, size: int) -> Decoded:
    """Decode PNG, JPEG or TIFF; raises whatever Pillow does."""
    with Pillow.open(file, formats=(kind,)) as image:
        check_size(image.width * image.height * len(image.getbands()), 1, size)
        return _decoded(image, kind)


def _decoded(image: ImageFile, kind: str) -> Decoded:
    notes = []
    if getattr(image, "is_animated", False):
        notes.append("several pages: the first one is read")
    if any(";16" in str(tile.args) for tile in image.tile) and len(image.getbands()) > 1:
        notes.append("16 bits a channel are read as 8")
    inverted = (
        isinstance(image, TiffImageFile)
        and image.tag_v2.get(PHOTOMETRIC) == 0
        and image.mode not in ("1", "L")
    )
    bits = 1 if image.mode == "1" else 8
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # a damaged EXIF block says nothing of the pixels
        notes.append("EXIF cannot be read: the orientation is as stored")
    pixels = _values(image)
    full = (0.0, 255.0)
    if pixels.dtype == np.uint16:
        bits, full = 16, (0.0, 65535.0)
    elif pixels.dtype == np.float32:
        bits, full = 32, (float(pixels.min()), float(pixels.max()))
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    planes = np.ascontiguousarray(planes)
    return Decoded(planes, kind, bits, full, invert=inverted, notes=tuple(notes))


def _values(image: Pillow.Image) -> np.ndarray:
    """Return pixels (H, W) or (H, W, 3) without alpha; 16 bits go through the array, unchanged."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        return np.array(image).astype(np.uint16)
    if mode in ("I", "F"):
        return np.array(image).astype(np.float32)
    if mode in ("1", "LA", "La"):
        return np.array(image.convert("L"))
    return np.array(image if mode in ("L", "RGB") else image.convert("RGB"))
