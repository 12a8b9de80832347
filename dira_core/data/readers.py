"""Read an image or a volume, whatever its file is called.

A file is known by its first bytes. Nothing is printed, and a message says the reason alone:
decoders quote headers, and headers name patients.
"""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

from PIL import Image as Pillow

from dira_core.data import Decoded, Window, pillow
from dira_core.data.formats import (
    HEAD,
    METAIMAGE,
    SUFFIXES,
    foreign,
    is_volume,
    slices_of,
    sniff,
)
from dira_core.data.windows import to_image
from dira_core.errors import DataError
from dira_core.types import Image

LOGGERS = ("PIL", "pydicom", "pylibjpeg", "openjpeg", "nibabel", "nibabel.global")
Made = TypeVar("Made")


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
            decoded = _guarded(lambda: _decode_series(path, slices))
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
        return _guarded(lambda: _decode_series(path))
    if not stat.S_ISREG(status.st_mode):
        raise DataError("not a regular file")
    size = status.st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(0)
        if not is_volume(head):
            return decode(file, size, voi=window == "auto")
        return _guarded(lambda: _decode_volume(file, path, first_of_4d))


def _decode_volume(file: BufferedReader, path: Path, first_of_4d: bool) -> Decoded:
    from dira_core.data import metaimage, nifti

    size = path.stat().st_size
    if METAIMAGE.match(file.peek(HEAD)):
        return metaimage.decode(file, path=path, size=size, first_of_4d=first_of_4d)
    return nifti.decode(file, size=size, first_of_4d=first_of_4d)


def _decode_series(folder: Path, slices: Sequence[Path] = ()) -> Decoded:
    from dira_core.data import series

    return series.decode(slices or slices_of(folder))


def pixels_of(path: Path) -> Path:
    """Return the file that holds the pixels: of a MetaImage the one its header names, else itself.

    Raises:
        DataError: The header is damaged, or the file it names is missing.
        OSError: The header cannot be opened.
    """
    if SUFFIXES.get(path.suffix.lower()) != "MetaImage":
        return path
    from dira_core.data import metaimage

    return metaimage.voxels_of(path)


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
        raise DataError(foreign(head))
    decoder: Callable[[BinaryIO], Decoded]
    if kind == "DICOM":
        from dira_core.data import dicom  # half a second, which other formats need not pay

        decoder = partial(dicom.decode, voi=voi)
    else:
        decoder = partial(pillow.decode, kind=kind, size=size)
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
