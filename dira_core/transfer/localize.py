"""Does a classifier that saw labels of whole images know where the finding is?"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dira_core.errors import DataError, RecipeError, did_you_mean
from dira_core.escaping import printable, text_cell
from dira_core.files import digest, write_atomic, writing
from dira_core.lock import owned
from dira_core.transfer import boxes, extra
from dira_core.transfer.heatmaps import grad_cam
from dira_core.transfer.images import across, check_mask
from dira_core.transfer.overlays import overlay
from dira_core.transfer.scoring import Predicted, csv_text, file_cell
from dira_core.transfer.truths import Truth, at_line, read_truths
from dira_core.transfer.tuned import Tuned, tuned
from dira_core.transfer.ways import Said

Array = np.ndarray[Any, Any]

RESULT, PLACES, OVERLAYS = "localization.json", "localization.csv", "overlays"
LOCK = "localize.lock"
HEADER = ["image", "finding", "pointed inside", "by chance", "boxes found", "best iou", "best iobb"]


@dataclass(frozen=True)
class Case:
    """An image with a finding, and what the classifier shows of it.

    Attributes:
        label: The finding.
        found: Boxes (n, 2, 2) in px of the stored image.
        iou: Of each with the truth it fits best.
        iobb: As `iou`.
        hit: Whether the hottest pixel lies in the truth; None of a flat map.
        chance: Part of what the network sees that the truth covers.
    """

    label: str
    found: Array
    iou: Array
    iobb: Array
    hit: bool | None
    chance: float


def localize(
    folder: Path,
    file: Path,
    out: Path,
    *,
    renamed: Mapping[str, str] | None = None,
    overlays: int = 16,
    said: Said = lambda line: None,
) -> dict[str, Any]:
    """Compare Grad-CAM of a fine-tuned classifier with where experts saw the findings.

    Images that the classifier was trained with, or stopped by, are left out.

    Args:
        folder: Of the transfer, finished.
        file: The truth, see `read_truths`.
        out: Folder of the result; files in it are replaced.
        renamed: What labels of `file` are called in the task.
        overlays: How many pictures are drawn.
        said: Takes lines for whoever watches.

    Raises:
        DiraError: Something a user can mend.
    """
    extra.require(extra.HEAT_MAPS)
    ready = tuned(folder)
    check_classes(renamed or {}, ready.target.classes)
    truths, notes = usable(read_truths(file, renamed or {}), ready)
    for note in notes:
        said(note)
    for index, truth in truths:
        check_place(file, truth, ready.task.read(index).pixels.shape[1:])
    cases, rows = [], []
    with owned(out, LOCK), writing(out):
        (out / OVERLAYS).mkdir(parents=True, exist_ok=True)
        for old in (out / OVERLAYS).glob("[0-9][0-9][0-9][0-9]-*.png"):
            old.unlink()
        for number, (index, truth) in enumerate(truths):
            case, picture = examined(ready, index, truth)
            cases.append(case)
            rows.append([file_cell(ready.target.source, index), *_cells(case)])
            if number < overlays:
                name = re.sub(r"[^A-Za-z0-9]+", "-", truth.label)
                picture.save(out / OVERLAYS / f"{number:04}-{name}.png")
        result = {
            "transfer": str(folder),
            "truth_sha256": digest(file),
            "levels": list(boxes.LEVELS),
            "notes": notes,
            "findings": {name: summary(of) for name, of in by_finding(cases).items()},
        }
        write_atomic(out / PLACES, csv_text(Predicted({}, HEADER, rows)).encode())
        write_atomic(out / RESULT, json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def check_classes(renamed: Mapping[str, str], classes: Sequence[str]) -> None:
    """Refuse names that no class of the task has.

    Raises:
        RecipeError: There is one.
    """
    for label, name in renamed.items():
        if name not in classes:
            raise RecipeError(
                f"{label!r:.60} cannot be renamed to {name!r:.60}, which is no class of the task"
                f"{did_you_mean(name, classes)}; it has: {', '.join(map(printable, classes[:20]))}"
            )


def usable(truths: Sequence[Truth], ready: Tuned) -> tuple[list[tuple[int, Truth]], list[str]]:
    """Find the images of truths among those of the target; leave out what cannot be judged.

    Raises:
        DataError: Nothing is left.
    """
    source, classes = ready.target.source, ready.target.classes
    names = [source.name(index) for index in range(len(source))]
    whole = {os.path.normpath(name): index for index, name in enumerate(names)}
    short = {Path(name).name: index for index, name in enumerate(names)}
    unique = len(short) == len(names)
    kept, unknown, elsewhere, learned = [], set(), 0, 0
    for truth in truths:
        index = whole.get(os.path.normpath(truth.image))
        if index is None and unique:
            index = short.get(Path(truth.image).name)
            if index is not None and not end_alike(truth.image, names[index]):
                index = None
        if truth.label not in classes:
            unknown.add(truth.label)
        elif index is None:
            elsewhere += 1
        elif index in ready.learned:
            learned += 1
        else:
            kept.append((index, truth))
    notes = [
        f"left out: the finding {name!r:.60}, not one of the task"
        f"{did_you_mean(name, classes)} (--as {name}=CLASS renames it)"
        for name in sorted(unknown)
    ]
    notes += [f"left out: {elsewhere} of images that the task does not have"] if elsewhere else []
    notes += [f"left out: {learned} of images the classifier was trained with"] if learned else []
    if not kept:
        raise DataError(f"nothing to compare with: {'; '.join(notes) or 'the file is empty'}")
    return kept, [f"compared: {len(kept)} findings in images it has not seen", *notes]


def end_alike(one: str, other: str) -> bool:
    """Say whether two paths could be of the same file, told from different folders."""
    ends = zip(reversed(Path(one).parts), reversed(Path(other).parts), strict=False)
    return all(a == b for a, b in ends)


def check_place(file: Path, truth: Truth, shape: Sequence[int]) -> None:
    """Refuse a truth of a file that is not of an image of a shape (H, W), as stored.

    Raises:
        DataError: Its mask has another size, or a box lies outside of the image.
    """
    name = printable(truth.image)
    if truth.mask is not None:
        with at_line(file, truth.lines[0]):
            check_mask(name, truth.mask.shape, shape)
    (height, width), (low, high) = shape, (truth.boxes[..., 0], truth.boxes[..., 1])
    outside = ((high <= 0) | (low >= (height, width))).any(1)
    for which in np.flatnonzero(outside)[:1]:
        (y, _), (x, _) = truth.boxes[which].tolist()
        with at_line(file, truth.lines[which]):
            raise DataError(
                f"a box of {truth.label!r:.60} in {name} (x {x:g}, y {y:g}) lies outside of the "
                f"image, {across(shape)} px: give boxes in px of the stored image"
            )


def examined(ready: Tuned, index: int, truth: Truth) -> tuple[Case, Any]:
    """Look at one image with one finding; return the case and its picture."""
    batch = ready.task.batch(np.array([index]))
    label = torch.tensor([ready.target.classes.index(truth.label)], device=ready.device)
    heat = grad_cam(ready.classifier, batch.images.to(ready.device), label)[0]
    frame = ready.task.whole(ready.task.read(index)).double().numpy()  # of the stored image
    scale = (frame[:, 1] - frame[:, 0]) / heat.shape
    found = boxes.detected(heat)
    placed = found * scale[:, None] + frame[:, :1]
    peak = np.array(np.unravel_index(heat.argmax(), heat.shape))
    at = (peak + 0.5) * scale + frame[:, 0]
    case = Case(
        truth.label,
        placed,
        boxes.best(boxes.iou(placed, truth.boxes)),
        boxes.best(boxes.iobb(placed, truth.boxes)),
        pointed(at, truth) if heat.any() else None,
        chance(truth, frame),
    )
    seen = (truth.boxes - frame[:, :1]) / scale[:, None]
    return case, overlay(batch.images[0].mean(0).numpy(), heat, seen, found)


def pointed(at: Array, truth: Truth) -> bool:
    """Say whether a point in px of the stored image lies in the truth: in its mask if it has one.

    Source: Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016,
    arXiv:1608.00507, section 4.1, without the tolerance of 15 px.
    """
    if truth.mask is None:
        return boxes.inside(at, truth.boxes)
    row, column = (min(int(x), side - 1) for x, side in zip(at, truth.mask.shape, strict=True))
    return bool(truth.mask[row, column])


def chance(truth: Truth, frame: Array) -> float:
    """Return how often a random point of a frame (2, 2) lies in the truth."""
    if truth.mask is None:
        return boxes.covered(truth.boxes, frame)
    (top, bottom), (left, right) = frame.astype(int).tolist()
    return float(truth.mask[top:bottom, left:right].mean())


def by_finding(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Sort cases by finding; "all" has every one where there are several findings."""
    names = dict.fromkeys(case.label for case in cases)
    found = {name: [case for case in cases if case.label == name] for name in names}
    return found if len(found) == 1 else {**found, "all": list(cases)}


def summary(cases: Sequence[Case]) -> dict[str, Any]:
    """Put cases together: the pointing game, and the tables of the ChestX-ray8 protocol.

    A flat map points nowhere: it counts as a miss, and "flat" says how many there are.
    """
    return {
        "cases": len(cases),
        "flat": sum(case.hit is None for case in cases),
        "pointing": float(np.mean([bool(case.hit) for case in cases])),
        "pointing_by_chance": float(np.mean([case.chance for case in cases])),
        "boxes": float(np.mean([len(case.found) for case in cases])),
        "iobb": boxes.localisation([case.iobb for case in cases], boxes.T_IOBB),
        "iou": boxes.localisation([case.iou for case in cases], boxes.T_IOU),
    }


def _cells(case: Case) -> Iterator[str]:
    yield text_cell(case.label)
    yield "" if case.hit is None else f"{case.hit:d}"
    yield f"{case.chance:.4g}"
    yield f"{len(case.found)}"
    yield f"{case.iou.max(initial=0):.4g}"
    yield f"{case.iobb.max(initial=0):.4g}"
