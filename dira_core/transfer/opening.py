"""Part a task, and find what would end a transfer late before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from dira_core.errors import DataError
from dira_core.escaping import first_few
from dira_core.targets import Labelled, Labels
from dira_core.transfer.plan import Plan
from dira_core.transfer.splits import Split, split_of


def parted(target: Labelled, plans: Iterable[Plan]) -> list[Split]:
    """Return which images train, which stop training and which are scored, by each plan.

    Raises:
        DataError: They cannot be parted, the truth of a test image is neither known nor unknown,
            or files of them are not there.
    """
    every = [split_of(target, plan) for plan in plans]
    if isinstance(target, Labels):
        for parts in every:
            check_truth(target.labels[parts.test])
    used = [part for parts in every for part in (parts.train, parts.validation, parts.test)]
    check_there(target, np.unique(np.concatenate(used)))
    return every


def check_truth(labels: np.ndarray[Any, Any]) -> None:
    """Refuse test labels that are neither known nor unknown.

    Raises:
        DataError: One lies between 0 and 1.
    """
    soft = int(((labels > 0) & (labels < 1)).any(1).sum())
    if soft:
        raise DataError(
            f"{soft} test images have labels between 0 and 1: only training images may; move them "
            "there, or choose how uncertain labels count"
        )


def check_there(target: Labelled, positions: np.ndarray[Any, Any]) -> None:
    """Refuse images whose files, or whose masks' files, are not there; nothing is opened.

    Raises:
        DataError: Names the first.
    """
    missing = [int(index) for index in positions if not target.there(int(index))]
    if missing:
        names = first_few(map(target.source.name, missing), most=3)
        raise DataError(
            f"{len(missing)} of {len(positions)} images, or their masks, are not there ({names}): "
            "bring the files, or take them out of the target"
        )
