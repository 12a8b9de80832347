"""Decode DICOM slices as one volume, in the units of the modality.

Slices are sorted by their positions along the normal of their planes, never by name or number.
Source: DICOM PS3.3, C.7.6.2.1.1 (position and orientation).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import Dataset

from dira_core.data import MAX_VALUES, Decoded
from dira_core.data.dicom import MONOCHROME, describe, image_of, parse
from dira_core.data.dicomvalues import group
from dira_core.data.volumes import LPS, affine_of, volume
from dira_core.errors import DataError

ALIKE = 1e-3
"""Most that two direction cosines of one orientation differ by."""

UNEVEN = 0.02
"""Most that a gap between slices differs from the usual one, as a part of it."""

TILTED = 0.01
"""Most that the stack leans, as a tangent: half a degree of gantry tilt."""


class Slice(NamedTuple):
    """One plane: pixels (H, W), where its first pixel is in mm (LPS), and how it lies.

    Attributes:
        steps: Along a row (to the next column) and along a column, in mm, (2, 3).
    """

    decoded: Decoded
    position: np.ndarray
    steps: np.ndarray
    uid: str


def decode(files: Iterable[Path]) -> Decoded:
    """Decode slices as one volume.

    Raises:
        DataError: A slice cannot be read, or they do not make up one straight, even stack.
    """
    slices, values = [], 0
    for found in _slices(files):
        values += found.decoded.pixels.size
        if values > MAX_VALUES:
            raise DataError(f"the slices have more than {MAX_VALUES >> 20} Mi pixel values")
        slices.append(found)
    if len(slices) < 2:
        raise DataError(f"a folder with {len(slices)} DICOM slices, where a volume has several")
    _check_alike(slices)
    across, down = slices[0].steps
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal)
    slices.sort(key=lambda one: float(one.position @ normal))
    gap = _gap(np.stack([one.position for one in slices]), normal)
    voxels = np.stack([one.decoded.pixels[0].T for one in slices], axis=-1)
    if voxels.dtype not in (np.uint8, np.uint16):
        voxels = voxels.astype(np.float32)
    affine = LPS @ affine_of(np.stack([across, down, gap * normal], axis=1), slices[0].position)
    first = slices[0].decoded
    full = (min(s.decoded.full[0] for s in slices), max(s.decoded.full[1] for s in slices))
    stack = volume(voxels, affine, "DICOM series", first.bits, full)
    return replace(stack, invert=first.invert)


def _slices(files: Iterable[Path]) -> Iterator[Slice]:
    for path in files:
        with path.open("rb") as file:
            dataset = parse(file)
        kind, frames = describe(dataset)
        if kind not in MONOCHROME:
            raise DataError("voxels of several channels or colours")
        uid = str(dataset.get("SeriesInstanceUID") or "")
        for frame in range(frames):
            decoded = image_of(dataset, kind, frame, voi=False)
            yield Slice(decoded, *_place(dataset, frame, decoded), uid)


def _place(dataset: Dataset, frame: int, decoded: Decoded) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of a plane and its steps, in mm."""
    position = group(dataset, frame, "PlanePositionSequence").get("ImagePositionPatient")
    cosines = group(dataset, frame, "PlaneOrientationSequence").get("ImageOrientationPatient")
    if position is None or cosines is None or decoded.spacing is None:
        raise DataError("a slice without position, orientation or spacing: its order is not known")
    across, down = np.array(cosines, float).reshape(2, 3)
    if not (_unit(across) and _unit(down) and abs(across @ down) < ALIKE):
        raise DataError("the orientation of a slice is not one of a plane")
    height, width = decoded.spacing
    return np.array(position, float).reshape(3), np.stack([across * width, down * height])


def _unit(vector: np.ndarray) -> bool:
    return bool(abs(np.linalg.norm(vector) - 1) < ALIKE)


def _check_alike(slices: Sequence[Slice]) -> None:
    first = slices[0]
    if any(one.uid != first.uid for one in slices):
        raise DataError(
            "slices of several series: give each its own folder, or --data the folder itself "
            "with data.series=split"
        )
    if any(one.decoded.pixels.shape != first.decoded.pixels.shape for one in slices):
        raise DataError("slices of several sizes")
    if any(one.decoded.invert != first.decoded.invert for one in slices):
        raise DataError("slices of which some are bright where others are dark")
    reach = np.linalg.norm(first.steps, axis=1, keepdims=True)
    if any((np.abs(one.steps - first.steps) > ALIKE * reach).any() for one in slices):
        raise DataError("slices of several orientations or spacings, such as a localizer")


def _gap(positions: np.ndarray, normal: np.ndarray) -> float:
    """Return the distance of slices in mm.

    Raises:
        DataError: It is not even, or the slices are shifted against each other.
    """
    if not np.isfinite(positions).all():
        raise DataError("the position of a slice is not a number")
    along = np.diff(positions @ normal)
    usual = float(np.median(along))
    if along.min() <= UNEVEN * usual or usual <= 0:
        raise DataError("several slices at one place: a series of several volumes, or of copies")
    if np.abs(along / usual - 1).max() > UNEVEN:
        raise DataError("unevenly spaced slices: some are missing, or have another thickness")
    from_first = positions - positions[0]
    aside = from_first - np.outer(from_first @ normal, normal)
    if np.linalg.norm(aside, axis=1).max() > TILTED * along.sum():
        raise DataError("a tilted gantry: the slices are shifted; straighten them first")
    return usual
