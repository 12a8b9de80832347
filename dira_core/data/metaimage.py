"""Decode a MetaImage volume (.mha, .mhd with .raw or .zraw).

A header may name one file of its own folder, and nothing else: ITK reads any path it is told.
Source: the MetaIO documentation, https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import math
import stat
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dira_core.data import Decoded, check_size
from dira_core.data.volumes import LPS, Shape, affine_of, native, single, volume
from dira_core.errors import DataError

TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}

ALIASES = {
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
    "Origin": "Offset",
    "Position": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
}

LAST = "ElementDataFile"
"""The key that ends a header."""

MAX_HEADER = 2**16
CHUNK = 2**20


def decode(file: BinaryIO, *, path: Path, size: int, first_of_4d: bool) -> Decoded:
    """Decode a volume.

    Args:
        file: Open at its start.
        path: Of the file: its voxels may be in another one of the same folder.
        size: Of the file in bytes.
        first_of_4d: Take the first volume of several.

    Raises:
        DataError: It is damaged, holds no single volume, or not what its header declares.
    """
    fields = _fields(file)
    shape, notes = _shape(fields, first_of_4d)
    kind = _type(fields)
    affine = _affine(fields, len(_numbers(fields, "DimSize")))
    if fields[LAST].upper() == "LOCAL":
        voxels = _voxels(file, fields, size, shape, kind)
    else:
        beside = _beside(path, fields[LAST])
        with beside.open("rb") as other:
            voxels = _voxels(other, fields, beside.stat().st_size, shape, kind)
    decoded = volume(native(voxels), affine, "MetaImage", 8 * kind.itemsize)
    return replace(decoded, notes=notes)


def voxels_of(path: Path) -> Path:
    """Return the file of the voxels: the one that a header names, or itself.

    Raises:
        DataError: It is damaged, or names no file that is read.
        OSError: It cannot be opened.
    """
    with path.open("rb") as file:
        named = _fields(file)[LAST]
    return path if named.upper() == "LOCAL" else _beside(path, named)


def _fields(file: BinaryIO) -> dict[str, str]:
    """Read `key = value` lines up to the one that says where the voxels are."""
    fields: dict[str, str] = {}
    left = MAX_HEADER
    while LAST not in fields:
        line = file.readline(left)
        left -= len(line)
        key, equals, value = line.partition(b"=")
        if not line.endswith(b"\n") and key.strip() != LAST.encode():
            raise DataError("damaged or cut short")
        if equals:
            name = key.strip().decode("latin-1")
            fields[ALIASES.get(name, name)] = value.strip().decode("utf-8", "replace")
    return fields


def _shape(fields: Mapping[str, str], first_of_4d: bool) -> tuple[Shape, tuple[str, ...]]:
    """Return (I, J, K), and what a user should know."""
    sides = [int(side) for side in _numbers(fields, "DimSize")]
    if len(sides) != int(fields.get("NDims", len(sides))) or len(sides) < 3 or min(sides) < 1:
        raise DataError("not a volume: fewer than three axes, or one without voxels")
    if int(fields.get("ElementNumberOfChannels", 1)) != 1:
        raise DataError("voxels of several channels or colours")
    return tuple(sides[:3]), single(sides[3:], first_of_4d)


def _type(fields: Mapping[str, str]) -> np.dtype:
    if not _said(fields, "BinaryData", True):
        raise DataError("voxels written as text are not read: write them as binary data")
    name = TYPES.get(fields.get("ElementType", ""))
    if name is None:
        raise DataError("the type of the voxels is missing or not supported")
    order = ">" if _said(fields, "BinaryDataByteOrderMSB", False) else "<"
    return np.dtype(order + name)


def _affine(fields: Mapping[str, str], rank: int) -> np.ndarray:
    """Return the affine in the axes of NIfTI, (4, 4); the header's are those of DICOM."""
    sizes = fields.get("ElementSpacing") or fields.get("ElementSize")
    spacing = _row(sizes, np.ones(rank))
    matrix = _row(fields.get("TransformMatrix"), np.eye(rank).ravel()).reshape(rank, rank)
    origin = _row(fields.get("Offset"), np.zeros(rank))
    steps = matrix[:3, :3].T * np.abs(spacing[:3])
    return np.asarray(LPS @ affine_of(steps, origin[:3]))


def _beside(path: Path, name: str) -> Path:
    """Return the file of the voxels.

    Raises:
        DataError: It is not one regular file in the header's folder, or below.
    """
    folder = path.parent.resolve()
    if name.split()[:1] == ["LIST"] or "%" in name:
        raise DataError("voxels in several files are not read: write one file")
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or "\0" in name:
        raise DataError("the header names voxels outside its own folder")
    found = (folder / name).resolve()
    if not found.is_relative_to(folder):
        raise DataError("the header names voxels outside its own folder")
    if not found.exists():
        raise DataError("the file of its voxels is missing")
    if not stat.S_ISREG(found.stat().st_mode):
        raise DataError("the file of its voxels is not a regular file")
    return found


def _voxels(
    file: BinaryIO, fields: Mapping[str, str], size: int, shape: Shape, kind: np.dtype
) -> np.ndarray:
    """Read (I, J, K) from where the voxels start; no more is inflated than the header declares."""
    check_size(math.prod(shape), kind.itemsize, size)
    wanted = math.prod(shape) * kind.itemsize
    start = int(fields.get("HeaderSize", 0))
    if start == -1:
        start = size - wanted
    if not 0 <= start <= size:
        raise DataError("the header declares more voxels than the file holds")
    if start:
        file.seek(start)
    data = _inflate(file, wanted) if _said(fields, "CompressedData", False) else file.read(wanted)
    if len(data) < wanted:
        raise DataError("the header declares more voxels than the file holds")
    return np.frombuffer(data, kind).reshape(shape, order="F")


def _inflate(file: BinaryIO, wanted: int) -> bytes:
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib or gzip, whatever it says
    parts, left = [], wanted
    while left > 0 and (data := inflater.unconsumed_tail or file.read(CHUNK)):
        parts.append(inflater.decompress(data, left))
        left -= len(parts[-1])
    return b"".join(parts)


def _numbers(fields: Mapping[str, str], key: str) -> list[float]:
    if key not in fields:
        raise DataError(f"the header has no {key}")
    return [float(word) for word in fields[key].split()]


def _row(text: str | None, default: np.ndarray) -> np.ndarray:
    """Return numbers, or the default; raises ValueError where there are more or fewer."""
    return default if text is None else np.array(text.split(), float).reshape(default.shape)


def _said(fields: Mapping[str, str], key: str, default: bool) -> bool:
    return fields.get(key, str(default)).strip().lower() in ("true", "1", "yes", "on")
