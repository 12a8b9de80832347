"""SIIM-ACR Pneumothorax Segmentation: DICOM files, and masks as runs of pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from dira_core import DataError, Masks
from dira_targets.files import columns, first_file, found_below, source, tally
from dira_targets.options import SiimOptions

FILES = ("stage_2_train.csv", "train-rle.csv", "stage_1_train.csv")
TEST = "dicom-images-test"
EMPTY = "-1"


@dataclass(frozen=True)
class Runs(Masks):
    """Masks as runs.

    Attributes:
        runs: Texts of each image, united; none for an empty mask.
        shapes: Height and width of each image.
    """

    runs: Sequence[Sequence[str]]
    shapes: Sequence[tuple[int, int]]

    def mask(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the runs; raises as the base class says."""
        shape = self.shapes[index]
        drawn = [drawn_runs(text, shape) for text in self.runs[index]]
        return np.any([np.zeros(shape, bool), *drawn], axis=0)[None], np.ones(shape, bool)


def drawn_runs(text: str, shape: tuple[int, int]) -> np.ndarray:
    """Return the mask (H, W) of runs "gap length gap length ...", column after column.

    A gap counts from the end of the run before it: this is not Kaggle's usual encoding.

    Raises:
        DataError: There is an odd count of numbers, or they leave the image.
    """
    numbers = np.array(text.split(), np.int64)
    if len(numbers) % 2 or (numbers < 0).any() or numbers.sum() > shape[0] * shape[1]:
        raise DataError("the runs of a mask do not fit their image: is it the original file?")
    gaps, lengths = numbers[::2], numbers[1::2]
    ends = (gaps + lengths).cumsum()
    steps = np.zeros(shape[0] * shape[1] + 1, np.int64)
    np.add.at(steps, ends - lengths, 1)
    np.add.at(steps, ends, -1)
    return steps[:-1].cumsum().astype(bool).reshape(shape[::-1]).T


def read(options: SiimOptions, window: Any) -> Runs:
    """Read runs and the headers of the files they belong to; a patient's id is only compared.

    Raises:
        DataError: A file is missing or has another content, or no image is there.
    """
    table = first_file(options.path, *FILES)
    runs = defaultdict[str, list[str]](list)
    for image, text in columns(table, "ImageId", "EncodedPixels"):
        runs[image] += [] if text == EMPTY else [text]
    place = found_below(options.path, ".dcm")
    kept = [image for image in runs if f"{image}.dcm" in place]
    if not kept:
        raise DataError(f"no image of {table.name} is below {str(options.path)!r}: put them there")
    paths = [place[f"{image}.dcm"] for image in kept]
    headers = [_header(options.path / path) for path in paths]
    parts = ["test" if Path(path).parts[0] == TEST else "train" for path in paths]
    official = options.split is not None and len(set(parts)) == 2
    empty = sum(not runs[image] for image in kept)
    notes = [tally("SIIM-ACR", parts) if official else f"SIIM-ACR: {len(kept):,} images"]
    notes += [f"empty masks: {empty:,} of {len(kept):,}"]
    if len(kept) < len(runs):
        notes.append(f"left out: {len(runs) - len(kept):,} images that are not there")
    return Runs(
        source(options.path, paths, window),
        ("pneumothorax",),
        parts if official else None,
        [who for who, _ in headers],
        [runs[image] for image in kept],
        [shape for _, shape in headers],
        notes=notes,
    )


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    """Return who an image shows, and its height and width."""
    wanted: list[Any] = ["PatientID", "Rows", "Columns"]
    try:
        found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=wanted)
        return str(found.get("PatientID") or ""), (int(found.Rows), int(found.Columns))
    except (InvalidDicomError, OSError, AttributeError, ValueError, TypeError):
        raise DataError(f"{path.name} is no DICOM image: repair it, or take it away") from None
