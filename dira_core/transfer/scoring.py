"""Predictions of the test part: their scores, and a table of them, one line an image."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dira_core.escaping import FORMULA, text_cell
from dira_core.evaluate import pieces
from dira_core.roles import Source
from dira_core.targets import Labelled, Labels, Masks
from dira_core.transfer.images import MaskTask
from dira_core.transfer.metrics import (
    Scores,
    classification_scores,
    dice,
    finite,
    hd95,
    iou,
    overlap,
    segmentation_scores,
)

Array = np.ndarray[Any, Any]


class Predicted(NamedTuple):
    """Scores, and what they are made of.

    Attributes:
        scores: See `metrics`.
        header: Names of the columns.
        rows: A line for each test image.
    """

    scores: Scores
    header: list[str]
    rows: list[list[str]]


def score_labels(target: Labels, test: Array, predicted: Array) -> Predicted:
    """Score predicted labels (M, K) of the test images."""
    truth, classes = target.labels[test], target.classes
    found = classification_scores(
        truth, predicted, classes, exclusive=target.exclusive, scored=target.scored
    )
    header = ["image", "patient", *(f"{kind} {c}" for kind in ("label", "score") for c in classes)]
    numbers = patient_numbers(target, test)
    rows = [
        [
            file_cell(target.source, int(index)),
            str(numbers[row]),
            *("" if np.isnan(value) else f"{value:g}" for value in truth[row]),
            *(repr(float(value)) for value in predicted[row]),
        ]
        for row, index in enumerate(test)
    ]
    return Predicted(found, header, rows)


def score_masks(
    task: MaskTask,
    target: Masks,
    test: Array,
    predict: Callable[[Tensor], Tensor],
) -> Predicted:
    """Predict masks of the test images (where p >= 0.5), score each, and all together.

    At the network's size, as published; distances are in mm where all files say how large a pixel
    is, else in px of the stored image.
    """
    classes = target.classes
    counts: list[Array] = []
    distances: list[list[float | None]] = []
    in_mm = all(task.spacing(int(index)) for index in test)
    for piece in pieces(test, 16):
        batch = task.batch(piece)
        output = predict(batch.images).numpy()
        finite(output)
        masks, truths, known = output >= 0.5, batch.truth.numpy() > 0, batch.known.numpy()[:, 0] > 0
        for row, index in enumerate(piece):
            spacing = pixel(task, int(index), in_mm=in_mm)
            pairs = list(zip(masks[row], truths[row], strict=True))
            counts.append(np.stack([overlap(a, b, known[row]) for a, b in pairs]))
            distances.append([hd95(a & known[row], b & known[row], spacing) for a, b in pairs])
    found = segmentation_scores(np.stack(counts), distances, classes, "mm" if in_mm else "px")
    columns = [f"{name} {c}" for c in classes for name in ("dice", "iou", "hd95")]
    numbers = patient_numbers(target, test)
    rows = [
        [
            file_cell(target.source, int(index)),
            str(numbers[row]),
            *_cells(counts[row], distances[row]),
        ]
        for row, index in enumerate(test)
    ]
    return Predicted(found, ["image", "patient", *columns], rows)


def patient_numbers(target: Labelled, test: Array) -> list[int]:
    """Number the patients of the test images in order: their names stay where they were."""
    seen: dict[str, int] = {}
    return [seen.setdefault(target.groups[index], len(seen)) for index in test]


def pixel(task: MaskTask, index: int, *, in_mm: bool) -> tuple[float, ...]:
    """Return the size of a pixel that the network sees, in mm or in px of the stored image."""
    covered = task.pixels(index)
    unit = task.spacing(index) if in_mm else None
    return covered if unit is None else tuple(c * u for c, u in zip(covered, unit, strict=True))


def _cells(counts: Array, distances: Sequence[float | None]) -> list[str]:
    cells = []
    for of, distance in zip(counts, distances, strict=True):
        cells += [f"{dice(of):.6g}", f"{iou(of):.6g}"]
        cells.append("" if distance is None else f"{distance:.6g}")
    return cells


def file_cell(source: Source, index: int) -> str:
    """Return the name of an image; one that looks like a formula starts at the folder itself."""
    name = source.name(index)
    return f"./{name}" if name.startswith(FORMULA) else name


def csv_text(predicted: Predicted) -> str:
    """Return the table as the text of a CSV file."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([map(text_cell, predicted.header), *predicted.rows])
    return file.getvalue()
