"""Decode one image of a DICOM file, and refuse what cannot be decoded safely.

Of the header only geometry and intensity are read, and no value of it gets into a message.
Source: DICOM PS3.3, C.7.6.3 (pixels).
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
from dira_core.data.dicomvalues import (
    full_range,
    modality,
    native,
    padding_of,
    spacing_of,
    voi_of,
)
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
    spacing = spacing_of(dataset, frame)
    if kind not in MONOCHROME:
        rgb = stored if kind in COLOUR else apply_color_lut(stored, dataset)[..., :3]
        bits = bits if kind in COLOUR else 8 * rgb.itemsize
        planes = np.ascontiguousarray(np.moveaxis(native(rgb), -1, 0))
        full = (0.0, 2.0**bits - 1)
        return Decoded(planes, "DICOM", bits, full, window=full, spacing=spacing)
    values, full = modality(stored, full_range(stored, bits, dataset), dataset, frame)
    window = None
    if voi:
        values, full, window = voi_of(values, full, dataset, frame)
    invert = kind == "MONOCHROME1"
    values, padding = native(values), padding_of(stored, dataset)
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
