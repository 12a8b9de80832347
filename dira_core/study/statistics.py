"""Is one arm better than another? Pure functions of numbers; scipy does what it can do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

LEVEL = 0.05
"""Significance level: of p after Holm's correction, and 1 - it of intervals."""


class Spread(NamedTuple):
    """Mean and sample standard deviation; the latter is None for a single value."""

    mean: float
    std: float | None


class WinTieLoss(NamedTuple):
    """How often an arm is significantly better, neither, significantly worse, and not tested."""

    wins: int
    ties: int
    losses: int
    untested: int


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation over seeds, with n - 1 in the denominator.

    The public code behind the paper divides by n, which makes ten runs look 5 % more alike.
    """
    several = len(values) > 1
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if several else None)


def t_test(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return p of the independent two-sample t-test, two-sided, equal variances (paper, section 4).

    Returns:
        None where it is not defined: fewer than two values, or none of them varies.
    """
    from scipy.stats import ttest_ind

    if not _testable(a, b):
        return None
    with warnings.catch_warnings():
        # said of one arm alone that does not vary; what counts is the deviation of both
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        return float(ttest_ind(a, b).pvalue)


def hedges_g(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Hedges' g: the difference in pooled standard deviations, unbiased for few values.

    Source: Hedges, "Distribution theory for Glass's estimator of effect size", J. Educ. Stat. 6
    (1981), eq. 6e (the exact correction).

    Returns:
        None where it is not defined: fewer than two values, or none of them varies.
    """
    if not _testable(a, b):
        return None
    free = len(a) + len(b) - 2
    pooled = ((len(a) - 1) * np.var(a, ddof=1) + (len(b) - 1) * np.var(b, ddof=1)) / free
    exact = math.lgamma(free / 2) - math.lgamma((free - 1) / 2) - math.log(math.sqrt(free / 2))
    return float((np.mean(a) - np.mean(b)) / math.sqrt(pooled) * math.exp(exact))


def _testable(a: Sequence[float], b: Sequence[float]) -> bool:
    """Say whether both arms have two values, and one of them varies by more than rounding."""
    several = min(len(a), len(b)) > 1
    return several and any(np.ptp(arm) > 1e-12 * np.max(np.abs(arm)) for arm in (a, b))


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values of a family of tests, so that one wrong finding among all is rare.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6
    (1979).
    """
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(p) else steps
    return [float(value) for value in corrected]


def resampled(patients: Sequence[int], times: int, seed: int = 0) -> Array:
    """Draw as many patients as there are, with replacement: how often each image is in the draw.

    Args:
        patients: One number for each image, the same for images of one patient.
        times: Draws.
        seed: The same one gives the same draws, so that arms are compared on the same patients.

    Returns:
        (times, N) float.
    """
    known, which = np.unique(patients, return_inverse=True)
    share = np.full(len(known), 1 / max(1, len(known)))
    draws = np.random.default_rng(seed).multinomial(len(known), share, size=times)
    return draws[:, which].astype(float)


def weighted_auc(truth: Array, scores: Array, weights: Array) -> Array:
    """Return the area under the ROC curve for each row of weights; NaN where a side is missing.

    The probability that a positive image scores higher than a negative one, ties counting half.

    Args:
        truth: (N,) of 0 and 1.
        scores: (N,).
        weights: (R, N), how often each image counts.

    Returns:
        (R,).
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # of equal scores
    positive, negative = (
        np.add.reduceat(weights[:, order] * (truth[order] == side), starts, axis=1)
        for side in (1, 0)
    )
    below = negative.cumsum(1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    with np.errstate(invalid="ignore"):
        area: Array = (positive * below).sum(1) / np.where(pairs > 0, pairs, np.nan)
    return area


def weighted_mean(values: Array, weights: Array) -> Array:
    """Return the mean of values (N,) for each row of weights (R, N); NaN without any weight."""
    total = weights.sum(1)
    mean: Array = weights @ values / np.where(total > 0, total, np.nan)
    return mean


def interval(draws: Array) -> tuple[float, float] | None:
    """Return the percentile interval of bootstrap draws; those that are not defined are left out.

    Returns:
        None where fewer than half of them are defined.
    """
    known = draws[np.isfinite(draws)]
    if 2 * len(known) < len(draws) or not len(known):
        return None
    low, high = np.quantile(known, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def win_tie_loss(findings: Sequence[tuple[float, float | None]]) -> WinTieLoss:
    """Count findings (difference, corrected p): only a significant difference is no tie."""
    tested = [(difference, p) for difference, p in findings if p is not None]
    significant = [difference for difference, p in tested if p < LEVEL]
    wins, losses = sum(d > 0 for d in significant), sum(d < 0 for d in significant)
    ties = len(tested) - len(significant)
    return WinTieLoss(wins, ties, losses, len(findings) - len(tested))
