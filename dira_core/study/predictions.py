"""The predictions of one transfer, scored anew for each bootstrap draw of test patients."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dira_core.errors import RunFolderError
from dira_core.escaping import text_cell
from dira_core.study.jobs import RESULT
from dira_core.study.plan import Metric
from dira_core.study.statistics import Array, resampled, weighted_auc, weighted_mean

DRAWS = 2000
"""Bootstrap draws of an interval."""

AT_ONCE = 200
"""Draws held in memory: of 25,000 images, 40 MB."""


class Predictions:
    """The predictions of one transfer on the test images.

    Args:
        path: The CSV file that it left.

    Raises:
        RunFolderError: It is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                self._rows = list(csv.DictReader(file))
            self.images = [row["image"] for row in self._rows]
            self._patients = [int(row["patient"]) for row in self._rows]
            if not self._rows:
                raise ValueError("no line")
        except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
            raise RunFolderError(
                f"{path} is missing or damaged: remove it and {path.parents[1] / RESULT}, and "
                "start the study again"
            ) from error

    def draws(self, metric: Metric, scored: Sequence[str]) -> Array:
        """Return the metric for each bootstrap draw of patients, (DRAWS,).

        Args:
            metric: Mean over classes.
            scored: Classes that count.
        """
        pieces = range(DRAWS // AT_ONCE)
        return np.concatenate(
            [
                self.weighted(metric, scored, resampled(self._patients, AT_ONCE, seed))
                for seed in pieces
            ]
        )

    def weighted(self, metric: Metric, scored: Sequence[str], weights: Array) -> Array:
        """Return the metric for each row of weights of images (R, N), (R,)."""
        if metric == "auc":
            mean: Array = np.mean([*self._areas(scored, weights)], 0)
            return mean
        name = metric.removesuffix("_per_image")
        columns = [self._column(f"{name} {of}") for of in scored]
        return weighted_mean(np.mean(columns, 0), weights)

    def _areas(self, scored: Sequence[str], weights: Array) -> Iterator[Array]:
        """Yield the AUC of each class that the test images show both sides of."""
        for name in scored:
            truth, scores = self._column(f"label {name}"), self._column(f"score {name}")
            known = np.isfinite(truth)
            if len(np.unique(truth[known])) == 2:
                yield weighted_auc(truth[known], scores[known], weights[:, known])

    def _column(self, name: str) -> Array:
        """Read a column; its name was escaped when it was written."""
        return np.array([float(row[text_cell(name)] or "nan") for row in self._rows])
