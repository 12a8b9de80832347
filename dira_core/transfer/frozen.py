"""What frozen features are worth: logistic regression, and nearest neighbours."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import update_bn

from dira_core.encodings import pool
from dira_core.evaluate import pieces
from dira_core.roles import Backbone
from dira_core.transfer.images import Task
from dira_core.transfer.metrics import mean_auc

Array = np.ndarray[Any, Any]

GRID = tuple(10.0**exponent for exponent in range(-5, 2))
"""Values of C, the inverse of the L2 penalty, among which cross-validation chooses."""

FOLDS = 3
ENCODED = 128
"""Images encoded, or compared with all others, at once."""


def measured(backbone: Backbone, task: Task, positions: Array, device: torch.device) -> Backbone:
    """Return a copy whose batch-norm statistics are those of some whole images.

    An untrained network has none, and a trained one has those of distorted crops.
    """
    again = copy.deepcopy(backbone)
    update_bn((task.batch(piece).images for piece in pieces(positions, ENCODED)), again, device)
    return again.eval()


def features(backbone: Backbone, task: Task, positions: Array, device: torch.device) -> Array:
    """Encode whole images: the deepest map averaged over space, (N, D) float64."""
    with torch.no_grad():
        found = [
            pool(backbone(task.batch(piece).images.to(device))[-1]).cpu()
            for piece in pieces(positions, ENCODED)
        ]
    return torch.cat(found).double().numpy()


def knn_scores(x: Array, y: Array, x_test: Array, k: int, temperature: float) -> Array:
    """Score each class by the k most similar training features.

    A neighbour votes with exp(cosine / temperature), as `dira_core.metrics.knn_accuracy`; a score
    is the part of the votes, among neighbours whose label is known, that go to the class.

    Args:
        x: Training features, (N, D).
        y: (N, K) of 0 and 1, NaN where not known.
        x_test: (M, D).
        k: Number of neighbours; all of them where there are fewer.
        temperature: Of the votes.

    Returns:
        (M, K) in [0, 1]; 0.5 where no neighbour's label is known.
    """
    unit, unit_test = (
        z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12) for z in (x, x_test)
    )
    scores = np.empty((len(x_test), y.shape[1]))
    for rows in pieces(np.arange(len(x_test)), ENCODED):  # a table of all need not fit into memory
        cosine = unit_test[rows] @ unit.T
        nearest = (-cosine).argsort(1, kind="stable")[:, :k]
        close = np.take_along_axis(cosine, nearest, 1)
        votes = np.exp((close - close[:, :1]) / temperature)[:, :, None]
        labels = y[nearest]
        known = ~np.isnan(labels)
        total = (votes * known).sum(1)
        won = (votes * np.nan_to_num(labels)).sum(1)
        scores[rows] = np.where(total > 0, won / np.where(total > 0, total, 1), 0.5)
    return scores


def linear_scores(
    x: Array, y: Array, patients: Sequence[str], x_test: Array, *, exclusive: bool, seed: int
) -> tuple[Array, list[float]]:
    """Fit logistic regression on standardised features; each column alone, or as one of several.

    C is chosen by cross-validation on the training features alone, no patient in two folds: the
    best mean AUC over folds, the smallest C of equals.

    Args:
        x: Training features, (N, D).
        y: (N, K) of 0 to 1, NaN where not known; above 0.5 is positive.
        patients: Who each training feature is of.
        x_test: (M, D).
        exclusive: Whether an image has exactly one of the classes.
        seed: Of the folds.

    Returns:
        Probabilities (M, K); the C chosen, once, or for each column.
    """
    who = np.array(patients)
    if exclusive:
        probability, c = _searched(x, y, who, x_test, seed)
        return probability, [c]
    columns, chosen = [], []
    for k in range(y.shape[1]):
        known = ~np.isnan(y[:, k])
        positive = (y[known, k] > 0.5).astype(np.float64)
        both = np.stack([1 - positive, positive], 1)
        probability, c = _searched(x[known], both, who[known], x_test, seed)
        columns.append(probability[:, 1])
        chosen.append(c)
    return np.stack(columns, 1), chosen


def _searched(x: Array, y: Array, patients: Array, x_test: Array, seed: int) -> tuple[Array, float]:
    """Choose C, fit on everything and predict (M, K); C is 0 where there is nothing to fit."""
    label = y.argmax(1)
    if len(np.unique(label)) < 2:  # nothing to tell apart: the same for all
        same = y.mean(0) if len(y) else np.full(y.shape[1], 0.5)
        return np.tile(same, (len(x_test), 1)), 0.0
    parts = folds(label, patients, seed)
    worth = {c: _worth(x, y, parts, c) for c in GRID} if parts else {}
    chosen = max(GRID, key=lambda c: worth[c]) if worth else GRID[len(GRID) // 2]
    return _fitted(x, label, x_test, chosen, y.shape[1]), chosen


def folds(label: Array, patients: Array, seed: int) -> list[tuple[Array, Array]]:
    """Cut images into folds of whole patients, each class in each as often as can be.

    Returns:
        Positions to fit and to test, at most `FOLDS` times; folds whose rest lacks a class are left
        out, and there are none where a class has only one patient.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    present = np.unique(label)
    n = min(FOLDS, *(len(np.unique(patients[label == k])) for k in present))
    if n < 2:
        return []
    cut = StratifiedGroupKFold(n, shuffle=True, random_state=seed).split(label, label, patients)
    return [(fit, test) for fit, test in cut if len(np.unique(label[fit])) == len(present)]


def _worth(x: Array, y: Array, parts: list[tuple[Array, Array]], c: float) -> float:
    """Return the mean AUC over folds; -1 where it is defined in none."""
    found = []
    for fit, test in parts:
        auc = mean_auc(y[test], _fitted(x[fit], y[fit].argmax(1), x[test], c, y.shape[1]))
        found += [] if auc is None else [auc]
    return float(np.mean(found)) if found else -1.0


def _fitted(x: Array, label: Array, x_test: Array, c: float, classes: int) -> Array:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000))
    model.fit(x, label)
    probability = np.zeros((len(x_test), classes))
    probability[:, model.classes_] = model.predict_proba(x_test)
    return probability
