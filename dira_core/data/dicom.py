"""Decode one image of a DICOM file: modality LUT, VOI LUT or window, colour, padding.

Of the header only geometry and intensity are read, and no value of it gets into a message.
Source: DICOM PS3.3, C.7.6.3 (pixels), C.11.1 (modality LUT), C.11.2 (VOI LUT).
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydicom import Dataset, dcmread, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import get_expected_length, pixel_array

from dira_core.data import Decoded, check_size
from dira_core.errors import DataError

MAX_INFLATED = 2**26
"""Most bytes a deflated file may become; larger files may grow eightfold."""

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

LOSSLESS_JPEG = ("lossless JPEG", "python-gdcm", {"gdcm", "pylibjpeg"})
JPEG_LS = ("JPEG-LS", "pyjpegls", {"pyjpegls", "gdcm", "pylibjpeg"})
CODECS = {
    uid.JPEGExtended12Bit: ("12-bit JPEG", "pylibjpeg-libjpeg", {"pylibjpeg"}),
    uid.JPEGLossless: LOSSLESS_JPEG,
    uid.JPEGLosslessSV1: LOSSLESS_JPEG,
    uid.JPEGLSLossless: JPEG_LS,
    uid.JPEGLSNearLossless: JPEG_LS,
}
"""Compressions that need a package dira does not install: what to call them, what to install,
which of pydicom's plugins decode them."""

Values = tuple[np.ndarray, tuple[float, float]]
"""Pixels (H, W), and the smallest and largest value they could have."""


def decode(file: BinaryIO, *, voi: bool) -> Decoded:
    """Decode the image of a DICOM file; of several frames, the middle one.

    Args:
        file: The file, open at its start.
        voi: Whether the file's own VOI LUT or window is applied; a window given by the user
            is in the units after the modality LUT.

    Raises:
        DataError: It holds no image, or one that cannot be decoded safely.
    """
    dataset = parse(file)
    kind, frames = describe(dataset)
    notes = ("several frames: the middle one is read",) if frames > 1 else ()
    return replace(image_of(dataset, kind, frames // 2, voi=voi), notes=notes)


def image_of(dataset: Dataset, kind: str, frame: int, *, voi: bool) -> Decoded:
    """Return one frame of a data set that `describe` found safe, and of what kind."""
    stored = stored_pixels(dataset, frame)
    bits = int(dataset.get("BitsStored") or 8 * stored.itemsize)
    spacing = _spacing(dataset, frame)
    if kind not in MONOCHROME:
        rgb = stored if kind in COLOUR else apply_color_lut(stored, dataset)[..., :3]
        bits = bits if kind in COLOUR else 8 * rgb.itemsize
        planes = np.ascontiguousarray(np.moveaxis(_native(rgb), -1, 0))
        full = (0.0, 2.0**bits - 1)
        return Decoded(planes, "DICOM", bits, full, window=full, spacing=spacing)
    values, full = _modality(stored, _range(stored, bits, dataset), dataset, frame)
    window = None
    if voi:
        values, full, window = _voi(values, full, dataset, frame)
    invert = kind == "MONOCHROME1"
    values, padding = _native(values), _padding(stored, dataset)
    if padding is not None:
        values[padding] = values[~padding].max() if invert else values[~padding].min()
    return Decoded(values[None], "DICOM", bits, full, window, invert, padding, spacing)


def parse(file: BinaryIO) -> Dataset:
    """Read the data set: inflated under a cap, its transfer syntax guessed where missing."""
    read_preamble(file, True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        dataset = read_dataset(BytesIO(_inflate(file.read())), False, True)
        return _with_syntax(dataset, uid.ExplicitVRLittleEndian)
    file.seek(0)
    dataset = dcmread(file, force=True)
    if dataset.file_meta.get("TransferSyntaxUID") is None and "PixelData" in dataset:
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset = _with_syntax(dataset, uid.ImplicitVRLittleEndian if implicit else explicit)
        if len(dataset.PixelData) - get_expected_length(dataset) not in (0, 1):
            raise DataError("no transfer syntax, and the pixels have not the declared length")
    return dataset


def series_of(file: BinaryIO) -> tuple[str, int]:
    """Return the UID of a file's series and its number of frames; pixels are not read."""
    read_preamble(file, True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    file.seek(0)
    if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        dataset = parse(file)  # which caps what is inflated
    else:
        wanted = ["SeriesInstanceUID", "NumberOfFrames"]
        dataset = dcmread(file, force=True, stop_before_pixels=True, specific_tags=wanted)
    frames = int(dataset.get("NumberOfFrames") or 1)
    return str(dataset.get("SeriesInstanceUID") or ""), frames


def describe(dataset: Dataset) -> tuple[str, int]:
    """Return the photometric interpretation and the number of frames of an image that is safe.

    Raises:
        DataError: There is no image, or its declared size does not fit the file.
    """
    present = [name for name in PIXELS if name in dataset]
    if not present or "Rows" not in dataset or "Columns" not in dataset:
        raise DataError("a DICOM file without an image: cut short, or a report or a plan")
    channels = int(dataset.get("SamplesPerPixel") or 1)
    kind = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    if kind not in (*MONOCHROME, *COLOUR, "PALETTE COLOR"):
        raise DataError("the photometric interpretation is not supported")
    if (channels == 3) != (kind in COLOUR):
        raise DataError("the photometric interpretation does not fit the samples per pixel")
    value_bytes = -(-int(dataset.get("BitsAllocated") or 8) // 8)
    held = len(dataset[present[0]].value)
    check_size(dataset.Rows * dataset.Columns * channels, value_bytes, held)
    frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    encapsulated = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    if not encapsulated and get_expected_length(dataset) > held:
        raise DataError("the header declares more pixels than the file holds")
    return kind, frames


def stored_pixels(dataset: Dataset, frame: int) -> np.ndarray:
    """Decode one frame, (H, W) or (H, W, 3) in RGB, as stored: before any look-up table.

    Raises:
        DataError: The pixels are damaged, or their compression needs a missing package.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        _check_codestream(dataset, frame)
    try:
        pixels: np.ndarray = pixel_array(dataset, index=frame)
    except Exception:
        # The cause is left out: pydicom's messages hold values of the header.
        name, package, plugins = CODECS.get(syntax, ("", "", set()))
        if name and plugins.isdisjoint(get_decoder(syntax).available_plugins):
            raise DataError(f"{name} needs another decoder: pip install {package}") from None
        raise DataError("the pixel data are damaged or cut short") from None
    return pixels


def _check_codestream(dataset: Dataset, frame: int) -> None:
    """Refuse a frame whose own header declares another size than the DICOM header."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    stream = get_frame(dataset.PixelData, frame, number_of_frames=frames)
    try:
        size = Image.open(BytesIO(stream), formats=("JPEG", "JPEG2000")).size
    except UnidentifiedImageError:
        return  # RLE, JPEG-LS and lossless JPEG: their decoders check it
    if size != (dataset.Columns, dataset.Rows):
        raise DataError("the compressed image has another size than the header declares")


def _inflate(data: bytes) -> bytes:
    limit = max(MAX_INFLATED, 8 * len(data))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data, limit)
    if inflater.unconsumed_tail:
        raise DataError(f"deflated data of more than {limit >> 20} MiB")
    return inflated


def _with_syntax(dataset: Dataset, syntax: uid.UID) -> Dataset:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _native(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 or uint16 where they hold the values, else float32; never a view."""
    unsigned = pixels.dtype.kind == "u" and pixels.itemsize <= 2
    return pixels.astype(f"u{pixels.itemsize}" if unsigned else np.float32)


def _range(stored: np.ndarray, bits: int, dataset: Dataset) -> tuple[float, float]:
    if stored.dtype.kind == "f":
        return float(stored.min()), float(stored.max())
    if dataset.PixelRepresentation:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def _modality(
    stored: np.ndarray, full: tuple[float, float], dataset: Dataset, frame: int
) -> Values:
    """Return values in the modality's units (HU for CT)."""
    if dataset.get("ModalityLUTSequence"):
        return look_up(stored, dataset.ModalityLUTSequence[0], dataset)
    item = group(dataset, frame, "PixelValueTransformationSequence")
    slope, intercept = _number(item, "RescaleSlope"), _number(item, "RescaleIntercept")
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if (slope, intercept) == (1, 0):
        return stored, full
    low, high = sorted(edge * slope + intercept for edge in full)
    return stored.astype(np.float64) * slope + intercept, (low, high)


def _voi(
    values: np.ndarray, full: tuple[float, float], dataset: Dataset, frame: int
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float] | None]:
    """Return values, their range and the window to show: C.11.2.1; the first of several."""
    item = group(dataset, frame, "FrameVOILUTSequence")
    if item.get("VOILUTSequence"):
        values, full = look_up(values, item.VOILUTSequence[0], dataset)
        return values, full, full
    center, width = _number(item, "WindowCenter"), _number(item, "WindowWidth")
    if center is None or width is None or width <= 0:
        return values, full, None
    function = str(item.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values.astype(np.float64) - center) / width, -700, 700)
        return 1 / (1 + np.exp(exponent)), (0, 1), (0, 1)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return values, full, (center - width / 2, center + width / 2)


def look_up(values: np.ndarray, item: Dataset, dataset: Dataset) -> Values:
    """Map values through the look-up table of a sequence item: C.11.1.1.

    The range is that of the table's entries: the bits it declares are often wrong.
    """
    entries, first, _ = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, f"{order}u2")
    table = np.atleast_1d(np.asarray(data)).astype(np.uint16)[: entries or 2**16]
    index = np.rint(values).astype(np.int64) - first
    return table[np.clip(index, 0, len(table) - 1)], (int(table.min()), int(table.max()))


def _padding(stored: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """Return which pixels lie outside the image (C.7.5.1.1.2); None where none or all do."""
    value = _number(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _number(dataset, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    outside = (stored >= low) & (stored <= high)
    return outside if outside.any() and not outside.all() else None


def _spacing(dataset: Dataset, frame: int) -> tuple[float, float] | None:
    item = group(dataset, frame, "PixelMeasuresSequence")
    value = item.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    if value is None or len(value) != 2:
        return None
    height, width = float(value[0]), float(value[1])
    finite = 0 < height < np.inf and 0 < width < np.inf
    return (height, width) if finite else None


def group(dataset: Dataset, frame: int, sequence: str) -> Dataset:
    """Return the item of a functional group, the frame's before the shared one, or the data set."""
    places = (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0))
    for name, position in places:
        groups = dataset.get(name) or []
        if position < len(groups) and groups[position].get(sequence):
            item: Dataset = groups[position][sequence].value[0]
            return item
    return dataset


def _number(item: Dataset, keyword: str) -> float | None:
    """Return the first value of an element, or None where it is missing.

    Raises:
        DataError: It is not a finite number.
    """
    try:
        value = item.get(keyword)
        if value is None or value == "":
            return None
        number = float(value if isinstance(value, int | float) else np.ravel(value)[0])
    except (TypeError, ValueError, ArithmeticError, IndexError):
        raise DataError(f"{keyword} is not a number") from None
    if not np.isfinite(number):
        raise DataError(f"{keyword} is not finite")
    return number
