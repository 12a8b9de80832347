"""What four radiologists outlined in a scan of LIDC-IDRI: its XML files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from dira_core import DataError

SPACE = "{http://www.nih.gov}"


@dataclass(frozen=True)
class Outline:
    """A closed line in a slice: the first pixels outside the nodule.

    Attributes:
        z: Of the slice, mm towards the head.
        points: Columns and rows, (n, 2).
        inside: Whether it bounds the nodule, or a hole in it.
    """

    z: float
    points: np.ndarray
    inside: bool


Reading = Sequence[Outline]
"""What one radiologist outlined as one nodule of 3 mm and more."""


def read_scan(path: Path) -> tuple[str, list[Reading]]:
    """Return the series that a file is about, and the readings in it.

    Raises:
        DataError: It is no such file.
    """
    try:
        root = ElementTree.parse(path).getroot()
        series = root.findtext(f"{SPACE}ResponseHeader/{SPACE}SeriesInstanceUid") or ""
        nodules = root.findall(f"{SPACE}readingSession/{SPACE}unblindedReadNodule")
        readings = [[_outline(roi) for roi in each.findall(f"{SPACE}roi")] for each in nodules]
    except (ElementTree.ParseError, OSError, TypeError, ValueError):
        raise DataError(f"{path.name} is no reading of LIDC-IDRI: copy it again") from None
    # a nodule below 3 mm is one point
    return series, [each for each in readings if any(len(o.points) > 2 for o in each)]


def _outline(roi: ElementTree.Element) -> Outline:
    points = [
        (int(edge.findtext(f"{SPACE}xCoord") or ""), int(edge.findtext(f"{SPACE}yCoord") or ""))
        for edge in roi.findall(f"{SPACE}edgeMap")
    ]
    inside = (roi.findtext(f"{SPACE}inclusion") or "").strip().upper() != "FALSE"
    z = float(roi.findtext(f"{SPACE}imageZposition") or "")
    return Outline(z, np.array(points).reshape(-1, 2), inside)


def bounds(reading: Reading) -> np.ndarray:
    """Return the first and last column, row and z of a reading, (3, 2)."""
    points = np.concatenate([each.points for each in reading])
    z = [each.z for each in reading]
    return np.array([*zip(points.min(0), points.max(0), strict=True), (min(z), max(z))])


def nodules(readings: Sequence[Reading]) -> list[list[Reading]]:
    """Group readings whose bounds meet, directly or through others: each group is one nodule."""
    groups: list[list[int]] = []
    boxes = [bounds(each) for each in readings]
    for index, box in enumerate(boxes):
        meets = [group for group in groups if any(_meet(box, boxes[i]) for i in group)]
        groups = [group for group in groups if group not in meets]
        groups.append([*(i for group in meets for i in group), index])
    return [[readings[i] for i in sorted(group)] for group in groups]


def _meet(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((np.maximum(a[:, 0], b[:, 0]) <= np.minimum(a[:, 1], b[:, 1])).all())


def filled(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return what lies within a closed line of columns and rows, (H, W) bool, without the line."""
    plane = Image.new("1", shape[::-1])
    line = [(float(x), float(y)) for x, y in points]
    if len(line) > 2:
        ImageDraw.Draw(plane).polygon(line, fill=1, outline=0)
    return np.array(plane, bool)
