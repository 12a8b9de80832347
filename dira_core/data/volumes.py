"""Volumes whatever their file: one frame of axes, one spacing.

The axes (D, H, W) of a volume rise towards the head, the front and the right of the patient: RAS,
as NIfTI says it from the fastest axis on. DICOM and MetaImage count towards left and back (LPS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
)

from dira_core.data import MAX_VALUES, Decoded
from dira_core.errors import DataError
from dira_core.filters import filtered, resizing

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns coordinates of DICOM into those of NIfTI, and back."""


Shape = tuple[int, ...]


def single(more: Sequence[int], first_of_4d: bool) -> tuple[str, ...]:
    """Return what a user should know where a file has axes of the lengths `more` besides three.

    Raises:
        DataError: There are several volumes, and none is to be taken.
    """
    if all(side == 1 for side in more):
        return ()
    if not first_of_4d or min(more) < 1:
        raise DataError(
            "several volumes in one file (4-D): split it, or take the first with "
            "data.first_of_4d=true"
        )
    return ("several volumes in one file: the first one is read",)


def affine_of(columns: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Return (4, 4) from steps along each axis in mm, as columns (3, 3), and the first voxel."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, origin
    return affine


def volume(
    voxels: np.ndarray,
    affine: np.ndarray,
    kind: str,
    bits: int,
    full: tuple[float, float] | None = None,
) -> Decoded:
    """Turn a volume into the frame of all volumes, by quarter turns and mirrors alone.

    Args:
        voxels: (I, J, K), I the fastest axis of the file; uint8, uint16 or float32.
        affine: From (i, j, k) to mm towards right, front and head, (4, 4).
        kind: Of the file.
        bits: Of a value in the file.
        full: Smallest and largest value there could be; by default those of unsigned integers, and
            of float32 those that there are.

    Raises:
        DataError: The affine tells no axes.
    """
    steps = affine[:3, :3]
    spacing = np.sqrt((steps**2).sum(0))
    if not (np.isfinite(affine).all() and (spacing > 0).all()):
        raise DataError("the spacing of voxels is 0 or not a number")
    if abs(np.linalg.det(steps / spacing)) < 1e-3:
        raise DataError("the axes of the volume do not span space")
    turn = io_orientation(affine)
    turned = apply_orientation(voxels, turn).T[None]
    order = np.argsort(turn[:, 0])[::-1]
    depth, height, width = (float(side) for side in spacing[order])
    if full is None:
        whole = voxels.dtype.kind == "u"
        full = (0.0, 2.0**bits - 1) if whole else (float(voxels.min()), float(voxels.max()))
    return Decoded(
        np.ascontiguousarray(turned),
        kind,
        bits,
        full,
        spacing=(depth, height, width),
        stored="".join(aff2axcodes(affine)),
        affine=affine @ inv_ornt_aff(turn, voxels.shape),
    )


def native(voxels: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> np.ndarray:
    """Return slope * voxels + intercept, as uint8 or uint16 where that holds it, else float32.

    Args:
        voxels: Any real type; slices along the last axis are turned one by one, in float64.
    """
    unsigned = voxels.dtype.kind == "u" and voxels.itemsize <= 2
    if (slope, intercept) == (1.0, 0.0):
        return voxels.astype(f"u{voxels.itemsize}" if unsigned else np.float32)
    values = np.empty(voxels.shape, np.float32, order="F")
    for k in range(voxels.shape[-1]):
        values[..., k] = voxels[..., k].astype(np.float64) * slope + intercept
    return values


def resampled(decoded: Decoded, spacing: tuple[float, float, float]) -> Decoded:
    """Resample a volume to a spacing in mm, linear, antialiased where it gets coarser.

    The volume covers what it covered, up to half a voxel.

    Raises:
        DataError: It is flat, or would become too large.
    """
    before = decoded.spacing
    if decoded.pixels.ndim != 4 or before is None:
        raise DataError("data.spacing is for volumes, and this is a flat image")
    sides = decoded.pixels.shape[1:]
    after = [
        max(1, round(n * old / new)) for n, old, new in zip(sides, before, spacing, strict=True)
    ]
    if np.prod(after, dtype=float) > MAX_VALUES:
        raise DataError("data.spacing would give too many voxels: use larger ones")
    taps = map(resizing, sides, after)
    pixels = np.ascontiguousarray(filtered(decoded.pixels, list(taps)))
    exact = tuple(n * old / m for n, old, m in zip(sides, before, after, strict=True))
    return replace(decoded, pixels=pixels, spacing=exact, padding=None, affine=None)
