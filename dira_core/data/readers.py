"""Read an image or a volume, whatever its file is called.

A file is known by its first bytes. Nothing is printed, and a message says the reason alone:
decoders quote headers, and headers name patients.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from dira_core.data import Decoded, Window, check_size
from dira_core.errors import DataError, RecipeError
from dira_core.types import Image

MIN_SIDE = 8
"""Fewest pixels a side; anything smaller is an icon or a damaged header."""

MIN_SLICES = 2
"""Fewest pixels along the shortest side of a volume: thick slices are few."""

PERCENTILES = (0.5, 99.5)
SAMPLE = 2**18
"""Pixels a percentile is taken of, evenly spaced; all of them where there are fewer."""

PHOTOMETRIC = 262
"""TIFF tag; 0 is MinIsWhite, which Pillow inverts for 1 and 8 bits only."""

FORMATS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
FOREIGN = {
    b"GIF8": "a GIF image",
    b"RIFF": "a RIFF file (WebP)",
    b"BM": "a BMP image",
    b"\0\0\0\x0cjP  ": "a bare JPEG 2000 image",
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF": "a PDF document",
    b"<": "an HTML or XML page",
}
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
SUFFIXES |= {".dcm": "DICOM", ".dicom": "DICOM", ".nii": "NIfTI"}
SUFFIXES |= {".mha": "MetaImage", ".mhd": "MetaImage"}
GZIP = b"\x1f\x8b"
NIFTI = tuple(n.to_bytes(4, order) for n in (348, 540) for order in ("little", "big"))
METAIMAGE = re.compile(rb"\s*(ObjectType|ObjectSubType|NDims|Comment|TransformType)\s*=")
READ = "PNG, JPEG, TIFF, DICOM, NIfTI and MetaImage"
LOGGERS = ("PIL", "pydicom", "pylibjpeg", "openjpeg", "nibabel", "nibabel.global")
Made = TypeVar("Made")
HEAD = 132
"""Bytes that tell a format: DICOM says so after a preamble of 128."""


def read(
    path: Path,
    window: Window,
    spacing: tuple[float, float, float] | None = None,
    *,
    first_of_4d: bool = False,
    slices: Sequence[Path] = (),
) -> Image:
    """Read an image file, a volume, or a folder of DICOM slices.

    Args:
        path: Of the file or folder.
        window: How values become [0, 1].
        spacing: Millimetres between voxels along (D, H, W) that volumes are resampled to.
        first_of_4d: Take the first volume of several in a file, which is refused otherwise.
        slices: DICOM files that make up the volume, in place of `path`.

    Raises:
        DataError: It cannot be read; the message is the reason, without path or header values.
    """
    return inspect(path, window, spacing, first_of_4d=first_of_4d, slices=slices)[0]


def inspect(
    path: Path,
    window: Window,
    spacing: tuple[float, float, float] | None = None,
    *,
    first_of_4d: bool = False,
    slices: Sequence[Path] = (),
) -> tuple[Image, Decoded]:
    """Read as `read` does, and return what the decoder found as well."""
    try:
        if slices:
            decoded = _guarded(lambda: _decode_slices(slices))
        else:
            decoded = decode_path(path, window, first_of_4d)
    except (OSError, ValueError) as error:
        raise DataError(_cause(error)) from None  # the error's text holds the path
    if spacing is not None:
        from dira_core.data.volumes import resampled  # a quarter of a second, for volumes alone

        decoded = resampled(decoded, spacing)
    promised = SUFFIXES.get(path.suffix.lower(), decoded.format)
    if promised != decoded.format and not slices:
        note = f"a {decoded.format} file named {path.suffix.lower()}"
        decoded = replace(decoded, notes=(*decoded.notes, note))
    return to_image(decoded, window), decoded


def read_bytes(data: bytes, window: Window) -> Image:
    """Read an image from the content of its file; raises as `read` does."""
    return to_image(decode(BytesIO(data), len(data), voi=window == "auto"), window)


def decode_path(path: Path, window: Window, first_of_4d: bool) -> Decoded:
    """Decode a file or a folder of slices; raises as `decode` does, and OSError."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        return _guarded(lambda: _decode_folder(path))
    if not stat.S_ISREG(status.st_mode):
        raise DataError("not a regular file")
    size = status.st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(0)
        if not is_volume(head):
            return decode(file, size, voi=window == "auto")
        return _guarded(lambda: _decode_volume(file, path, first_of_4d))


def is_volume(head: bytes) -> bool:
    """Say whether the first bytes of a file are those of NIfTI, of gzip or of MetaImage."""
    return head.startswith((GZIP, *NIFTI)) or METAIMAGE.match(head) is not None


def _decode_volume(file: BufferedReader, path: Path, first_of_4d: bool) -> Decoded:
    from dira_core.data import metaimage, nifti

    size = path.stat().st_size
    if METAIMAGE.match(file.peek(HEAD)):
        return metaimage.decode(file, path=path, size=size, first_of_4d=first_of_4d)
    return nifti.decode(file, size=size, first_of_4d=first_of_4d)


def _decode_folder(path: Path) -> Decoded:
    from dira_core.data import series

    return series.decode(series.files_of(path))


def _decode_slices(slices: Sequence[Path]) -> Decoded:
    from dira_core.data import series

    return series.decode(slices)


def series_of(path: str) -> tuple[str, int] | None:
    """Return the UID of the series of a DICOM file and its number of frames.

    None where it is no DICOM file, or cannot be read: reading it says why.
    """
    from dira_core.data import dicom

    try:
        with open(path, "rb") as file:
            if sniff(file.peek(HEAD)) == "DICOM":
                return _guarded(lambda: dicom.series_of(file))
    except (OSError, DataError):
        pass
    return None


def sniff(head: bytes) -> str | None:
    """Return the format of a file from its first `HEAD` bytes, or None.

    DICOM without a preamble starts with an element of group 2 or 8, low number first.
    """
    if head[128:132] == b"DICM":
        return "DICOM"
    for magic, name in FORMATS.items():
        if head.startswith(magic):
            return name
    bare = len(head) >= 12 and head[0] in (2, 8) and head[1] == 0 and head[3] == 0
    return "DICOM" if bare else None


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
    return Image(pixels, shown, decoded.spacing, affine=decoded.affine)


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
    low, high = np.percentile(flat[:: -(-flat.size // SAMPLE)], PERCENTILES)
    return (low, high) if low < high else (flat.min(), flat.max())


@contextmanager
def mute() -> Iterator[None]:
    """Silence what a C library writes to standard error by itself, as libtiff does.

    Whatever another thread writes there meanwhile is lost too: only for as long as a decode.
    """
    try:
        kept = os.dup(2)
    except OSError:  # a daemon's is closed
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what decoders print and log, and turn Pillow's bomb warning into an error."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    sink = logging.NullHandler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Pillow.DecompressionBombWarning)
        told = [logger.propagate for logger in loggers]
        try:
            for logger in loggers:
                logger.propagate = False
                logger.addHandler(sink)
            yield
        finally:
            for logger, propagate in zip(loggers, told, strict=True):
                logger.propagate = propagate
                logger.removeHandler(sink)


def decode(file: BinaryIO, size: int, *, voi: bool) -> Decoded:
    """Decode an open image file of `size` bytes; `voi`: apply the file's own look-up table.

    Raises:
        DataError: It is damaged, or none of the formats read.
    """
    head = file.read(HEAD)
    file.seek(0)
    kind = sniff(head)
    if kind is None:
        raise DataError(_foreign(head))
    decoder: Callable[[BinaryIO], Decoded]
    if kind == "DICOM":
        from dira_core.data import dicom  # half a second, which other formats need not pay

        decoder = partial(dicom.decode, voi=voi)
    else:
        decoder = partial(decode_pillow, kind=kind, size=size)
    with mute() if kind == "TIFF" else nullcontext():
        return _guarded(lambda: decoder(file))


def _guarded(decoder: Callable[[], Made]) -> Made:
    """Decode quietly; whatever is raised becomes a `DataError` without values of the header."""
    try:
        with quiet():
            return decoder()
    except DataError:
        raise
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        raise DataError("the header declares too many pixels") from None
    except Exception as error:
        # Decoders raise anything at damaged bytes; what they say may quote the header.
        raise DataError(_cause(error)) from None


def _cause(error: Exception) -> str:
    """Say in a few words why a file cannot be read, without the error's own text."""
    if isinstance(error, MemoryError):
        return "more memory is needed than there is"
    reason = error.strerror if isinstance(error, OSError) else None
    return reason.lower() if reason else "damaged or cut short"


def _foreign(head: bytes) -> str:
    """Say what a file is that is none of the formats read."""
    if not head:
        return "empty file"
    for magic, name in FOREIGN.items():
        if head.lstrip().startswith(magic):
            return f"{name}; {READ} are read"
    text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head)
    return "a text file, not an image" if text else f"not an image: {READ} are read"


def decode_pillow(file: BinaryIO, *, kind: str, size: int) -> Decoded:
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
