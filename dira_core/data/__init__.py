"""Where images come from: what a decoder hands back, and the limits every decoder keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dira_core.errors import DataError

if TYPE_CHECKING:
    import numpy as np

Window = Literal["auto", "full", "percentile"] | tuple[float, float]
"""The recipe's `window`: how pixel values become [0, 1]."""

MAX_VALUES = 2**28
"""Most values (pixels x channels) of one image."""

MAX_RATIO = 1032
"""Most decoded bytes per byte of file, for images above `FREE_BYTES`: more deflate cannot give."""

FREE_BYTES = 2**25


@dataclass(frozen=True)
class Decoded:
    """The pixels of a file before a window is chosen.

    Attributes:
        pixels: (C, *S), uint8, uint16 or float32; the axes of a volume are as in `volumes`.
        format: "PNG", "JPEG", "TIFF", "DICOM", "NIfTI", "MetaImage" or "DICOM series".
        bits: Bits a value had in the file.
        full: Smallest and largest value the file could hold; of float32, those it holds.
        window: The two values the file itself wants mapped to 0 and 1, or None.
        invert: Whether large values are dark (MONOCHROME1, MinIsWhite).
        padding: (*S) bool, pixels outside the image, or None.
        spacing: Size of a pixel along each axis of S in mm, or None.
        notes: What a user should know about how the file was read; never a value of its header.
        stored: Where the axes of a volume point in its file, fastest first: "RAS", "LPI"; or None.
        affine: Of a volume, see `dira_core.Image`.
    """

    pixels: np.ndarray
    format: str
    bits: int
    full: tuple[float, float]
    window: tuple[float, float] | None = None
    invert: bool = False
    padding: np.ndarray | None = None
    spacing: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()
    stored: str | None = None
    affine: np.ndarray | None = None


def check_size(values: int, value_bytes: int, stored_bytes: int) -> None:
    """Refuse an image before memory is taken for it.

    Args:
        values: Pixels x channels that the header declares.
        value_bytes: Bytes of one decoded value.
        stored_bytes: Bytes the image takes in its file.

    Raises:
        DataError: The image is empty, too large, or could only be a decompression bomb.
    """
    if values <= 0:
        raise DataError("the header declares no pixels")
    if values > MAX_VALUES:
        raise DataError(f"the header declares more than {MAX_VALUES >> 20} Mi pixel values")
    if values * value_bytes > FREE_BYTES + MAX_RATIO * stored_bytes:
        raise DataError("the header declares far more pixels than the file can hold")
