"""Boxes of a heat map against those of an expert: pure functions of arrays.

A box is (D, 2): its first and last edge along each axis in px, the last one outside.

Source: Wang et al., "ChestX-ray8", CVPR 2017, arXiv:1705.02315: its localization of pathologies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LEVELS = (60, 180)
"""Where a heat map in [0, 255] is cut, each by itself; boxes of both are detections."""

T_IOU = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
T_IOBB = (0.1, 0.25, 0.5, 0.75, 0.9)


def regions(mask: Array) -> Array:
    """Return the box around each isolated region of a mask (*S) bool: (n, D, 2) int64.

    Pixels that share a corner belong together.
    """
    from scipy.ndimage import find_objects, label

    numbered, n = label(mask, np.ones((3,) * mask.ndim))
    slices = find_objects(numbered)
    edges = [[[side.start, side.stop] for side in each] for each in slices]
    return np.array(edges, np.int64).reshape(n, mask.ndim, 2)


def detected(heat: Array, levels: Sequence[float] = LEVELS) -> Array:
    """Return the boxes around what a heat map (*S) in [0, 255] shows above each level."""
    return np.concatenate([regions(heat > level) for level in levels])


def intersection(a: Array, b: Array) -> Array:
    """Return how much boxes (n, D, 2) and (m, D, 2) have in common, (n, m) px."""
    low = np.maximum(a[:, None, :, 0], b[None, :, :, 0])
    high = np.minimum(a[:, None, :, 1], b[None, :, :, 1])
    common: Array = (high - low).clip(0).prod(-1)
    return common


def content(boxes: Array) -> Array:
    """Return how many px boxes (n, D, 2) hold, (n,)."""
    inside: Array = (boxes[..., 1] - boxes[..., 0]).prod(-1)
    return inside


def iou(found: Array, truth: Array) -> Array:
    """Return the intersection over union of boxes (n, D, 2) and (m, D, 2), (n, m)."""
    both = intersection(found, truth)
    union: Array = content(found)[:, None] + content(truth)[None] - both
    return both / union


def iobb(found: Array, truth: Array) -> Array:
    """Return the intersection over what the found box holds, (n, m)."""
    share: Array = intersection(found, truth) / content(found)[:, None]
    return share


def best(agreement: Array) -> Array:
    """Return how well each found box agrees with the truth it fits best, (n,)."""
    most: Array = agreement.max(1, initial=0.0)
    return most


def localisation(cases: Sequence[Array], thresholds: Sequence[float]) -> dict[str, Any]:
    """Score cases, an image with a finding each.

    Args:
        cases: `best` of each.
        thresholds: A found box is right above them.

    Returns:
        By threshold: "acc", the part of the cases with a right box, and "afp", false boxes an
        image; None without cases.
    """
    if not cases:
        return {"thresholds": list(thresholds), "acc": None, "afp": None}
    right = [[(case > t).any() for case in cases] for t in thresholds]
    false = [[(case <= t).sum() for case in cases] for t in thresholds]
    return {
        "thresholds": list(thresholds),
        "acc": [float(np.mean(each)) for each in right],
        "afp": [float(np.mean(each)) for each in false],
    }


def inside(point: Array, boxes: Array) -> bool:
    """Say whether a point (D,) lies in one of the boxes."""
    return bool(((boxes[..., 0] <= point) & (point < boxes[..., 1])).all(-1).any())


def covered(boxes: Array, frame: Array) -> float:
    """Return the part of a frame (D, 2) that lies in some of the boxes (n, D, 2)."""
    edges = [np.unique(np.clip(boxes[:, d].ravel(), *frame[d])) for d in range(boxes.shape[1])]
    middles = [(each[1:] + each[:-1]) / 2 for each in edges]
    lengths = [np.diff(each) for each in edges]
    cells = np.stack(np.meshgrid(*middles, indexing="ij"), -1)
    sizes = np.prod(np.meshgrid(*lengths, indexing="ij"), axis=0)
    within = (boxes[..., 0] <= cells[..., None, :]) & (cells[..., None, :] < boxes[..., 1])
    return float((sizes * within.all(-1).any(-1)).sum() / content(frame))
