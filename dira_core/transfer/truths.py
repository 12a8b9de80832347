"""Where findings are, as experts drew them: boxes, or masks, listed in a CSV file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dira_core.data.labelled import mask_pixels
from dira_core.data.manifest import read_csv
from dira_core.errors import DataError
from dira_core.escaping import printable
from dira_core.transfer.boxes import regions

Array = np.ndarray[Any, Any]

BOX = ("image", "label", "x", "y", "w", "h")
NIH = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
"""Columns of BBox_List_2017.csv; what it calls its box has commas in it."""

MASK = ("image", "label", "mask")
SYNONYMS = {"Infiltrate": "Infiltration"}
"""What BBox_List_2017.csv calls a finding, and what NIH's labels do."""


@dataclass(frozen=True)
class Truth:
    """A finding in an image.

    Attributes:
        image: Path of the image, as the file says it.
        label: The finding.
        boxes: Around each place of it, (n, 2, 2) in px of the stored image.
        mask: Its pixels (H, W) bool, or None where only boxes are known.
    """

    image: str
    label: str
    boxes: Array
    mask: Array | None = None


def read_truths(path: Path, renamed: Mapping[str, str]) -> list[Truth]:
    """Read findings: columns image, label, x, y, w, h; or image, label, mask; or NIH's list.

    Lines of the same image and finding are one. Masks that are empty are left out.

    Args:
        path: CSV file; paths of masks start at its folder.
        renamed: What labels of the file are called in the task.

    Raises:
        DataError: The file cannot be read, or has none of these columns.
    """
    header, lines = read_csv(path)
    names = next((each for each in (BOX, NIH, MASK) if set(each) <= set(header)), None)
    if names is None:
        raise DataError(
            f"{printable(path.name)!r} has neither the columns {', '.join(BOX)} (px) nor "
            f"{', '.join(MASK)}, and is not NIH's BBox_List_2017.csv"
        )
    found: dict[tuple[str, str], list[Truth]] = {}
    for line in lines:
        image, label, *place = (line[header.index(name)].strip() for name in names)
        label = renamed.get(label, label)
        if names == MASK:
            mask = mask_pixels(path.parent / place[0]) > 0
            truth = Truth(image, label, regions(mask), mask)
        else:
            truth = Truth(image, label, _box(place)[None])
        if len(truth.boxes):
            found.setdefault((image, label), []).append(truth)
    return [_united(each) for each in found.values()]


def _box(cells: list[str]) -> Array:
    """Return the box (2, 2) of the texts x, y, w, h."""
    try:
        x, y, w, h = map(float, cells)
    except ValueError:
        raise DataError(f"a box is four numbers, got {', '.join(cells)!r:.60}") from None
    if not (w > 0 and h > 0 and np.isfinite([x, y, w, h]).all()):
        raise DataError(f"a box has a width and a height above 0, got {', '.join(cells)!r:.60}")
    return np.array([[y, y + h], [x, x + w]])


def _united(truths: list[Truth]) -> Truth:
    first = truths[0]
    if len(truths) == 1:
        return first
    masks = [truth.mask for truth in truths if truth.mask is not None]
    if masks and len({mask.shape for mask in masks}) > 1:
        raise DataError(f"masks of {printable(first.image)!r} differ in size")
    mask = np.logical_or.reduce(masks) if masks else None
    return Truth(first.image, first.label, np.concatenate([t.boxes for t in truths]), mask)
