"""LIDC-IDRI: boxes around nodules, and the pixels on which half of their readers agree."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from dira_core import DataError, Masks
from dira_targets.candidates import LPS, Candidates
from dira_targets.files import all_below, source, tally
from dira_targets.options import LidcOptions
from dira_targets.readings import Reading, bounds, filled, nodules, read_scan

LAST = {"train": 510, "validation": 610}
"""Last patient of each part: as many as Models Genesis had, but its lists are not published."""


@dataclass(frozen=True)
class Plane:
    """Where the pixels of an axial series lie.

    Attributes:
        corner: Of the first pixel, mm towards left and back, (2,).
        step: From a column and a row to the next, mm towards left and back, (2,).
    """

    corner: np.ndarray
    step: np.ndarray

    def place(self, points: np.ndarray, z: float) -> np.ndarray:
        """Return where columns and rows (n, 2) of a slice are, in mm of `Image.affine`, (n, 3)."""
        flat = self.corner + points * self.step
        places: np.ndarray = np.column_stack([flat, np.full(len(flat), z)]) * LPS
        return places


@dataclass(frozen=True)
class Nodules(Masks):
    """Boxes around nodules.

    Attributes:
        readings: Of each.
        planes: Of the series of each.
    """

    readings: Sequence[Sequence[Reading]]
    planes: Sequence[Plane]

    def mask(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the readings; raises as the base class says."""
        if not isinstance(self.source, Candidates):
            raise TypeError("nodules are boxes in volumes")
        affine, shape = self.source.frame(index)
        drawn = [
            drawn_reading(each, self.planes[index], affine, shape) for each in self.readings[index]
        ]
        return (np.mean(drawn, axis=0) >= 0.5)[None], np.ones(shape, bool)


def drawn_reading(
    reading: Reading, plane: Plane, affine: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Return the pixels (D, H, W) bool of a box that a reading outlines."""
    mask = np.zeros(shape, bool)
    back = np.linalg.inv(affine)
    for outline in sorted(reading, key=lambda each: not each.inside):
        voxels = plane.place(outline.points, outline.z) @ back[:3, :3].T + back[:3, 3]
        level = round(float(voxels[0, 2]))
        if 0 <= level < shape[0]:
            area = filled(np.rint(voxels[:, :2]), (shape[1], shape[2]))
            mask[level] = mask[level] | area if outline.inside else mask[level] & ~area
    return mask


def read(options: LidcOptions, window: Any) -> Nodules:
    """Read the outlines, and one header of each series they are about.

    Raises:
        DataError: A file cannot be read, or no nodule is there.
    """
    folder = options.path
    series = dict(found_series(folder))
    rows, missing = [], 0
    for place in sorted(all_below(folder, ".xml")):
        uid, readings = read_scan(folder / place)
        if uid in series:
            rows += [(uid, group) for group in nodules(readings) if len(group) >= options.readers]
        else:
            missing += bool(readings)
    if not rows:
        raise DataError(
            f"no nodule of {options.readers} or more readers in an axial series below "
            f"{str(folder)!r}: unpack slices and XML files there"
        )
    used = list(dict.fromkeys(uid for uid, _ in rows))
    numbers = [_patient(series[uid][0]) for uid, _ in rows]
    split = [next((part for part, last in LAST.items() if n <= last), "test") for n in numbers]
    notes = [tally("LIDC-IDRI nodules", split), f"in {len(used):,} series"]
    notes += [f"left out: {missing:,} readings of series not there or askew"] if missing else []
    planes = [series[uid][1] for uid, _ in rows]
    middles = [_middle(group, plane) for (_, group), plane in zip(rows, planes, strict=True)]
    volumes = source(folder, [series[uid][0] for uid in used], window)
    of = [used.index(uid) for uid, _ in rows]
    return Nodules(
        Candidates(volumes, of, np.array(middles), options.extent),
        ("nodule",),
        split,
        [str(n) for n in numbers],
        [group for _, group in rows],
        planes,
        notes=notes,
    )


def found_series(folder: Path) -> Iterator[tuple[str, tuple[str, Plane]]]:
    """Yield folders of axial slices by the identity of their series; one header of each is read."""
    tags: list[Any] = ["SeriesInstanceUID", "ImagePositionPatient"]
    tags += ["ImageOrientationPatient", "PixelSpacing"]
    for place, _, names in os.walk(folder, followlinks=True):
        slices = sorted(name for name in names if name.lower().endswith(".dcm"))
        if len(slices) < 2:
            continue
        try:
            header = pydicom.dcmread(
                Path(place) / slices[0], stop_before_pixels=True, specific_tags=tags
            )
            cosines = np.array(header.ImageOrientationPatient, float)
            corner = np.array(header.ImagePositionPatient, float)[:2]
            down, across = map(float, header.PixelSpacing)
        except (InvalidDicomError, OSError, AttributeError, TypeError, ValueError):
            continue  # a radiograph, or something else
        if np.allclose(np.abs(cosines), [1, 0, 0, 0, 1, 0], atol=1e-3):
            step = np.array([across * cosines[0], down * cosines[4]])
            relative = os.path.relpath(place, folder)
            yield str(header.SeriesInstanceUID), (relative, Plane(corner, step))


def _middle(group: Sequence[Reading], plane: Plane) -> np.ndarray:
    """Return the middle of all readings of a nodule, as `Image.affine` says it, (3,)."""
    boxes = np.stack([bounds(each) for each in group])
    column, row, z = (boxes[:, :, 0].min(0) + boxes[:, :, 1].max(0)) / 2
    middle: np.ndarray = plane.place(np.array([[column, row]]), z)[0]
    return middle


def _patient(path: str) -> int:
    found = re.search(r"LIDC-IDRI-(\d{4})", path)
    if found is None:
        raise DataError("a series of LIDC-IDRI lies below its patient's: keep LIDC-IDRI-0001")
    return int(found[1])
