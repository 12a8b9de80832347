"""Decode a NIfTI volume (.nii, .nii.gz), version 1 or 2.

nibabel reads the header; the voxels are read here, so that no more is inflated than it declares.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from dira_core.data import Decoded, check_size
from dira_core.data.volumes import Shape, native, single, volume
from dira_core.errors import DataError

Header = Any
"""Of nibabel, which says no types: Nifti1Header or Nifti2Header."""

VERSIONS = {
    348: (Nifti1Header, 344, b"n+1\0"),
    540: (Nifti2Header, 4, b"n+2\0\r\n\x1a\n"),
}
"""By the length of a header, which it starts with: what reads it, where its magic is, which."""

MAX_EXTENSIONS = 2**24
"""Most bytes between the header and the voxels."""

MM = {1: 1e3, 3: 1e-3}
"""Millimetres of a unit by its code: metres, micrometres; all others are taken for millimetres."""

GZIP = b"\x1f\x8b"


def decode(file: BinaryIO, *, size: int, first_of_4d: bool) -> Decoded:
    """Decode a volume, inflated or not.

    Args:
        file: Open at its start.
        size: Of the file in bytes.
        first_of_4d: Take the first volume of several.

    Raises:
        DataError: It is damaged, holds no single volume, or not what its header declares.
    """
    if file.read(2) != GZIP:
        file.seek(0)
        return _decode(file, size, first_of_4d)
    file.seek(0)
    with gzip.GzipFile(fileobj=file) as inflated:
        try:
            return _decode(inflated, size, first_of_4d)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise DataError("a gzip file that is damaged or cut short") from None


def _decode(file: BinaryIO | gzip.GzipFile, size: int, first_of_4d: bool) -> Decoded:
    header, length = _header(file)
    shape, notes = _shape(header, first_of_4d)
    kind = header.get_data_dtype()
    if kind.kind not in "iuf":
        raise DataError("voxels of several channels or colours")
    check_size(math.prod(shape), kind.itemsize, size)
    skipped = int(header["vox_offset"]) - length
    if not 0 <= skipped <= MAX_EXTENSIONS:
        raise DataError("the header does not say where its voxels are")
    file.read(skipped)
    wanted = math.prod(shape) * kind.itemsize
    data = file.read(wanted)
    if len(data) < wanted:
        raise DataError("the header declares more voxels than the file holds")
    file.read(1)  # at its end, a gzip file says whether all was right
    voxels = np.frombuffer(data, kind).reshape(shape, order="F")
    slope, intercept = header.get_slope_inter()
    values = native(voxels, 1.0 if slope is None else slope, intercept or 0.0)
    affine = header.get_best_affine()
    affine[:3] *= MM.get(int(header["xyzt_units"]) & 7, 1.0)
    decoded = volume(values, affine, "NIfTI", 8 * kind.itemsize)
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        notes += ("NIfTI without a frame of axes: taken to be LAS",)
    return replace(decoded, notes=notes)


def _header(file: BinaryIO | gzip.GzipFile) -> tuple[Header, int]:
    """Read the header, and return its length in bytes."""
    start = file.read(max(VERSIONS))
    for length, (reader, place, magic) in VERSIONS.items():
        for sign in "<>":
            if start[:4] != struct.pack(f"{sign}i", length):
                continue
            if len(start) < length:
                raise DataError("damaged or cut short")
            if start[place : place + len(magic)] != magic:
                raise DataError("a NIfTI header without its voxels: only single files are read")
            file.seek(length)
            header = reader(start[:length], endianness=sign, check=False)
            header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1  # 0 means 1, as NIfTI says
            return header, length
    raise DataError("a gzip file that holds no NIfTI volume")


def _shape(header: Header, first_of_4d: bool) -> tuple[Shape, tuple[str, ...]]:
    """Return (I, J, K), and what a user should know."""
    rank = int(header["dim"][0])
    if not 1 <= rank <= 7:
        raise DataError("the header declares no sensible number of axes")
    shape, more = header.get_data_shape()[:3], header.get_data_shape()[3:]
    if len(shape) < 3 or min(shape) < 1:
        raise DataError("not a volume: fewer than three axes, or one without voxels")
    return shape, single(more, first_of_4d)
