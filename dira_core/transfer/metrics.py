"""Scores of predictions: AUC, average precision, accuracy; Dice, IoU, HD95. Never a silent NaN.

A score that is not defined (one class absent, an empty mask) is None, is counted, and stays out of
means; a prediction that is not finite is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dira_core.errors import DivergedError

Array = np.ndarray[Any, Any]
Scores = dict[str, Any]
"""Numbers by name; tables of them by class; None where a score is not defined."""


def classification_scores(
    truth: Array,
    scores: Array,
    classes: Sequence[str],
    *,
    exclusive: bool,
    scored: Sequence[str] | None = None,
) -> Scores:
    """Score predictions of labels.

    Args:
        truth: (N, K) of 0 and 1, NaN where a label is not known.
        scores: (N, K), larger where the class is likelier; probabilities for the accuracy of labels
            that do not exclude each other.
        classes: K names.
        exclusive: Whether an image has exactly one of the classes.
        scored: The classes whose mean counts; all of them by default.

    Returns:
        "auc" and "average_precision": mean over scored classes, "by_class", and those "left_out" of
        the mean because the images show only one of their sides; "accuracy": part of the images
        whose likeliest class is right, or of the known labels that p >= 0.5 gets right; "scored":
        the classes whose mean counts.

    Raises:
        DivergedError: A score is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    finite(scores)
    mean_of = classes if scored is None else scored
    return {
        "auc": _by_class(roc_auc_score, truth, scores, classes, mean_of),
        "average_precision": _by_class(average_precision_score, truth, scores, classes, mean_of),
        "accuracy": accuracy(truth, scores, exclusive=exclusive),
        "scored": list(mean_of),
    }


def mean_auc(truth: Array, scores: Array) -> float | None:
    """Return the AUC averaged over classes that have both sides; None where no class has."""
    from sklearn.metrics import roc_auc_score

    finite(scores)
    names = [str(k) for k in range(truth.shape[1])]
    mean: float | None = _by_class(roc_auc_score, truth, scores, names, names)["mean"]
    return mean


def accuracy(truth: Array, scores: Array, *, exclusive: bool) -> float | None:
    """Return the part of images, or of known labels, that are right; None where none is known."""
    if exclusive:
        known = ~np.isnan(truth).any(1)
        right = truth[known].argmax(1) == scores[known].argmax(1)
    else:
        known = ~np.isnan(truth)
        right = (scores[known] >= 0.5) == (truth[known] == 1)
    return float(right.mean()) if right.size else None


def finite(scores: Array) -> None:
    """Refuse scores that cannot be ranked.

    Raises:
        DivergedError: One is NaN or infinite.
    """
    bad = int((~np.isfinite(scores)).any(tuple(range(1, scores.ndim))).sum())
    if bad:
        raise DivergedError(
            f"predictions of {bad} of {len(scores)} images are not finite: use a smaller rate "
            "(training.optimizer.lr) or --set precision=fp32"
        )


def _by_class(
    score: Callable[[Array, Array], float],
    truth: Array,
    scores: Array,
    classes: Sequence[str],
    mean_of: Sequence[str],
) -> Scores:
    found: dict[str, float | None] = {}
    for k, name in enumerate(classes):
        known = ~np.isnan(truth[:, k])
        y = truth[known, k]
        both = 0 < y.sum() < len(y)
        found[name] = float(score(y, scores[known, k])) if both else None
    defined = [found[name] for name in mean_of if found[name] is not None]
    return {
        "mean": float(np.mean(np.array(defined))) if defined else None,
        "by_class": found,
        "left_out": [name for name in mean_of if found[name] is None],
    }


def overlap(predicted: Array, truth: Array, known: Array) -> Array:
    """Count pixels of masks: (4,) int64 of intersection, prediction, truth and union.

    Args:
        predicted: (*S) bool.
        truth: (*S) bool.
        known: (*S) bool; other pixels do not count.
    """
    a, b = predicted & known, truth & known
    return np.array([(a & b).sum(), a.sum(), b.sum(), (a | b).sum()], np.int64)


def dice(counts: Array) -> float:
    """Return 2 |A and B| / (|A| + |B|) of `overlap`; 1 where both masks are empty."""
    both, a, b, _ = counts.tolist()
    return 2 * both / (a + b) if a + b else 1.0


def iou(counts: Array) -> float:
    """Return |A and B| / |A or B| of `overlap`; 1 where both masks are empty."""
    both, _, _, either = counts.tolist()
    return both / either if either else 1.0


def hd95(predicted: Array, truth: Array, spacing: Sequence[float]) -> float | None:
    """Return the 95th percentile Hausdorff distance of two masks' borders.

    The larger of the two percentiles, from prediction to truth and back, each linearly
    interpolated. A border is what one erosion takes away (neighbours share a face), and the edge of
    the image.

    Args:
        predicted: (*S) bool.
        truth: (*S) bool.
        spacing: Size of a pixel along each axis; decides the unit.

    Returns:
        None where a mask is empty: there is no distance to nothing.
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    if not (predicted.any() and truth.any()):
        return None
    a, b = (mask & ~binary_erosion(mask) for mask in (predicted, truth))
    to_a, to_b = (distance_transform_edt(~border, sampling=spacing) for border in (a, b))
    return float(max(np.percentile(to_b[a], 95), np.percentile(to_a[b], 95)))


def segmentation_scores(
    counts: Array, distances: Sequence[Sequence[float | None]], classes: Sequence[str], unit: str
) -> Scores:
    """Put the scores of images together.

    Args:
        counts: (N, K, 4) of `overlap`.
        distances: N lists of K, of `hd95`.
        classes: K names.
        unit: Of the distances: "mm" or "px".

    Returns:
        By class and their mean: "dice_global" and "iou_global" count the pixels of all images
        together, "dice_per_image" and "iou_per_image" are means over images (1 where prediction and
        truth are empty), "hd95_mm" or "hd95_px" the mean over images where neither is empty;
        "hd95_undefined" says how many are not in it, "images_with" in how many the truth is not
        empty; "scored": the classes, whose mean counts.
    """
    found: Scores = {"scored": list(classes)}
    for name, score in (("dice", dice), ("iou", iou)):
        each = [[score(counts[n, k]) for k in range(len(classes))] for n in range(len(counts))]
        found[f"{name}_global"] = _table([score(of) for of in counts.sum(0)], classes)
        found[f"{name}_per_image"] = _table(np.mean(each, 0).tolist(), classes)
    columns = [[d for d in column if d is not None] for column in zip(*distances, strict=True)]
    means = [float(np.mean(column)) if column else None for column in columns]
    found[f"hd95_{unit}"] = _table(means, classes)
    left_out = [len(distances) - len(column) for column in columns]
    found["hd95_undefined"] = dict(zip(classes, left_out, strict=True))
    with_class = (counts[:, :, 2] > 0).sum(0).tolist()
    found["images_with"] = dict(zip(classes, with_class, strict=True))
    return found


def _table(values: Sequence[float | None], classes: Sequence[str]) -> Scores:
    defined = [value for value in values if value is not None]
    mean = float(np.mean(defined)) if defined else None
    return {"mean": mean, "by_class": dict(zip(classes, values, strict=True))}
