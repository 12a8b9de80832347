"""What the stored pixels of a DICOM image mean: modality LUT, VOI LUT or window, padding, spacing.

No value of the header gets into a message.
Source: DICOM PS3.3, C.11.1 (modality LUT), C.11.2 (VOI LUT), C.7.5.1.1.2 (padding).
"""

from __future__ import annotations

import numpy as np
from pydicom import Dataset

from dira_core.errors import DataError

Values = tuple[np.ndarray, tuple[float, float]]
"""Pixels (H, W), and the smallest and largest value they could have."""


def native(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 or uint16 where they hold the values, else float32; never a view."""
    unsigned = pixels.dtype.kind == "u" and pixels.itemsize <= 2
    return pixels.astype(f"u{pixels.itemsize}" if unsigned else np.float32)


def full_range(stored: np.ndarray, bits: int, dataset: Dataset) -> tuple[float, float]:
    """Return the smallest and largest value that stored pixels could have."""
    if stored.dtype.kind == "f":
        return float(stored.min()), float(stored.max())
    if dataset.PixelRepresentation:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def modality(stored: np.ndarray, full: tuple[float, float], dataset: Dataset, frame: int) -> Values:
    """Return values in the modality's units (HU for CT)."""
    if dataset.get("ModalityLUTSequence"):
        return look_up(stored, dataset.ModalityLUTSequence[0], dataset)
    item = group(dataset, frame, "PixelValueTransformationSequence")
    slope, intercept = _number(item, "RescaleSlope"), _number(item, "RescaleIntercept")
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if (slope, intercept) == (1, 0):
        return stored, full
    low, high = sorted(edge * slope + intercept for edge in full)
    return stored.astype(np.float64) * slope + intercept, (low, high)


def voi_of(
    values: np.ndarray, full: tuple[float, float], dataset: Dataset, frame: int
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float] | None]:
    """Return values, their range and the window to show: C.11.2.1; the first of several."""
    item = group(dataset, frame, "FrameVOILUTSequence")
    if item.get("VOILUTSequence"):
        values, full = look_up(values, item.VOILUTSequence[0], dataset)
        return values, full, full
    center, width = _number(item, "WindowCenter"), _number(item, "WindowWidth")
    if center is None or width is None or width <= 0:
        return values, full, None
    function = str(item.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values.astype(np.float64) - center) / width, -700, 700)
        return 1 / (1 + np.exp(exponent)), (0, 1), (0, 1)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    return values, full, (center - width / 2, center + width / 2)


def look_up(values: np.ndarray, item: Dataset, dataset: Dataset) -> Values:
    """Map values through the look-up table of a sequence item: C.11.1.1.

    The range is that of the table's entries: the bits it declares are often wrong.
    """
    entries, first, _ = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, f"{order}u2")
    table = np.atleast_1d(np.asarray(data)).astype(np.uint16)[: entries or 2**16]
    index = np.rint(values).astype(np.int64) - first
    return table[np.clip(index, 0, len(table) - 1)], (int(table.min()), int(table.max()))


def padding_of(stored: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """Return which pixels lie outside the image (C.7.5.1.1.2); None where none or all do."""
    value = _number(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _number(dataset, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    outside = (stored >= low) & (stored <= high)
    return outside if outside.any() and not outside.all() else None


def spacing_of(dataset: Dataset, frame: int) -> tuple[float, float] | None:
    """Return the distance of pixels along height and width in mm, or None where it is not known."""
    item = group(dataset, frame, "PixelMeasuresSequence")
    value = item.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    if value is None or len(value) != 2:
        return None
    height, width = float(value[0]), float(value[1])
    finite = 0 < height < np.inf and 0 < width < np.inf
    return (height, width) if finite else None


def group(dataset: Dataset, frame: int, sequence: str) -> Dataset:
    """Return the item of a functional group, the frame's before the shared one, or the data set."""
    places = (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0))
    for name, position in places:
        groups = dataset.get(name) or []
        if position < len(groups) and groups[position].get(sequence):
            item: Dataset = groups[position][sequence].value[0]
            return item
    return dataset


def _number(item: Dataset, keyword: str) -> float | None:
    """Return the first value of an element, or None where it is missing.

    Raises:
        DataError: It is not a finite number.
    """
    try:
        value = item.get(keyword)
        if value is None or value == "":
            return None
        number = float(value if isinstance(value, int | float) else np.ravel(value)[0])
    except (TypeError, ValueError, ArithmeticError, IndexError):
        raise DataError(f"{keyword} is not a number") from None
    if not np.isfinite(number):
        raise DataError(f"{keyword} is not finite")
    return number
