"""Where findings are, as experts drew them: boxes, or masks, listed in a CSV file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dira_core.data.labelled import mask_pixels
from dira_core.data.manifest import find_column, line_number, read_csv
from dira_core.errors import DataError, RecipeError, did_you_mean
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
        lines: Cells of the line that each box is of.
        mask: Its pixels (H, W) bool, or None where only boxes are known.
    """

    image: str
    label: str
    boxes: Array
    lines: Sequence[list[str]]
    mask: Array | None = None


def read_truths(path: Path, renamed: Mapping[str, str]) -> list[Truth]:
    """Read findings: columns image, label, x, y, w, h; or image, label, mask; or NIH's list.

    Lines of the same image and finding are one. Masks that are empty are left out.

    Args:
        path: CSV file; paths of masks start at its folder.
        renamed: What labels of the file are called in the task; those of NIH's list by `SYNONYMS`.

    Raises:
        DataError: The file cannot be read, or has none of these columns.
        RecipeError: No line has a label that is to be renamed.
    """
    header, lines = read_csv(path)
    known = {name.casefold() for name in header}
    names = next((e for e in (BOX, NIH, MASK) if {name.casefold() for name in e} <= known), None)
    if names is None:
        raise DataError(
            f"{printable(path.name)!r} has neither the columns {', '.join(BOX)} (px) nor "
            f"{', '.join(MASK)}, and is not NIH's BBox_List_2017.csv"
        )
    columns = [find_column(header, name) for name in names]
    rows = [[line[column].strip() for column in columns if column is not None] for line in lines]
    _check_renamed(renamed, {label for _, label, *_ in rows})
    called = (SYNONYMS if names == NIH else {}) | dict(renamed)
    found: dict[tuple[str, str], list[Truth]] = {}
    for line, (image, label, *cells) in zip(lines, rows, strict=True):
        with at_line(path, line):
            mask = mask_pixels(path.parent / cells[0]) > 0 if names == MASK else None
            boxes = _box(cells)[None] if mask is None else regions(mask)
        truth = Truth(image, called.get(label, label), boxes, [line] * len(boxes), mask)
        if len(boxes):
            found.setdefault((image, truth.label), []).append(truth)
    return [_united(path, each) for each in found.values()]


@contextmanager
def at_line(path: Path, line: list[str]) -> Iterator[None]:
    """Say of an error which line of a file it is about."""
    try:
        yield
    except DataError as error:
        number, name = line_number(path, line), printable(path.name)
        raise DataError(f"line {number} of {name!r}: {error}") from error


def _check_renamed(renamed: Mapping[str, str], labels: Collection[str]) -> None:
    for label in renamed:
        if label not in labels:
            raise RecipeError(
                f"no line has the label {label!r:.60}, which is to be renamed"
                f"{did_you_mean(label, labels)}; there are: "
                f"{', '.join(map(printable, sorted(labels)[:20]))}"
            )


def _box(cells: list[str]) -> Array:
    """Return the box (2, 2) of the texts x, y, w, h."""
    try:
        x, y, w, h = map(float, cells)
    except ValueError:
        raise DataError(f"a box is four numbers, got {', '.join(cells)!r:.60}") from None
    if not (w > 0 and h > 0 and np.isfinite([x, y, w, h]).all()):
        raise DataError(f"a box has a width and a height above 0, got {', '.join(cells)!r:.60}")
    return np.array([[y, y + h], [x, x + w]])


def _united(path: Path, truths: list[Truth]) -> Truth:
    first = truths[0]
    if len(truths) == 1:
        return first
    masks = [truth.mask for truth in truths if truth.mask is not None]
    for truth, mask in zip(truths, masks, strict=False):
        if mask.shape != masks[0].shape:
            with at_line(path, truth.lines[0]):
                name = printable(first.image)
                raise DataError(f"masks of {name!r} differ in size: give masks of the image's")
    united = np.logical_or.reduce(masks) if masks else None
    boxes = np.concatenate([truth.boxes for truth in truths])
    lines = [line for truth in truths for line in truth.lines]
    return Truth(first.image, first.label, boxes, lines, united)
