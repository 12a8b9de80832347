"""Which images train, which stop training, which are scored; and label fractions of the first.

Whole patients go one way, never their images one by one. Seeds of their own decide, so that every
network and every training seed can meet the same images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dira_core.draws import Draws
from dira_core.errors import DataError, did_you_mean
from dira_core.targets import Labelled, Labels
from dira_core.transfer.plan import Plan, Training

Array = np.ndarray[Any, Any]

PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What a split column may say, in any case."""

EARLY_STOP, TEST = 0.1, 0.2
"""Part of training images that decide when to stop; part of all that is tested without a split."""


@dataclass(frozen=True)
class Split:
    """Positions of images by what they are for, each sorted.

    Attributes:
        train: Their labels change weights.
        validation: Their labels decide when to stop.
        test: Their labels are looked at once, at the end.
        held_out: Whether `validation` was taken from the training images; the ways that need no
            early stop then train on it too.
    """

    train: Array
    validation: Array
    test: Array
    held_out: bool

    @property
    def fit(self) -> Array:
        """All training images: with those of the early stop where they were taken from them."""
        return np.union1d(self.train, self.validation) if self.held_out else self.train


def split_of(target: Labelled, plan: Plan) -> Split:
    """Split the images of a target as a plan says; see `split`."""
    labels = target.labels if isinstance(target, Labels) else None
    seeds = plan.split_seed, plan.label_seed
    return split(target.split, target.groups, labels, plan.fraction, *seeds)


def split(
    column: Sequence[str] | None,
    patients: Sequence[str],
    labels: Array | None,
    fraction: float,
    seed: int,
    label_seed: int,
) -> Split:
    """Split images as their column says, and where it says nothing at random by patient.

    Without a column 20 % of the images are for testing; without a validation part 10 % of the
    training images, stratified, decide when to stop. A label fraction is taken of what trains and,
    where it was held out, of what stops; of no other part.

    Args:
        column: "train", "validation", "test" (or `PARTS`) of each image; empty leaves it out.
        patients: Of each image.
        labels: (N, K) of 0 to 1 and NaN for stratification, or None.
        fraction: Of the training labels that are used, in (0, 1].
        seed: Of random parts.
        label_seed: Of which labels the fraction takes; nested for one seed.

    Raises:
        DataError: A patient is in two parts, a part is empty, or the column says something else.
    """
    everything = np.arange(len(patients))

    def first(
        of: Array, share: float, path: str, seed: int = seed, *, apart: bool = False
    ) -> Array:
        strata = np.zeros(len(of), np.int64) if labels is None else rarest_class(labels[of])
        return portion(of, [patients[i] for i in of], strata, share, seed, path, apart=apart)

    if column is None:
        test = first(everything, TEST, "test", apart=True)
        if not len(test):
            raise DataError(
                "no class has a second patient to test on: add images, or say which are for "
                "testing in a column `split`"
            )
        parts = {"train": np.setdiff1d(everything, test), "test": test}
    else:
        parts = named_parts(column)
        check_leak(parts, patients)
    train, validation = parts["train"], parts.get("validation", everything[:0])
    held_out = not len(validation)
    if held_out:
        validation = first(train, EARLY_STOP, "early stop", apart=True)
        train = np.setdiff1d(train, validation)
        validation = first(validation, fraction, "fraction", label_seed)
    train = first(train, fraction, "fraction", label_seed)
    if not len(train):
        raise DataError("no image is left to train on: the training part has too few patients")
    return Split(train, validation, parts["test"], held_out)


def watched(parts: Split, least: int) -> Split:
    """Let what was held out train as well, where it is fewer images than could decide anything."""
    if not parts.held_out or len(parts.validation) >= least:
        return parts
    return replace(parts, train=parts.fit, validation=parts.validation[:0])


def training_on(parts: Split, training: Training) -> Training:
    """Return how to train on a split: to an end that is known, where no image decides."""
    return training if len(parts.validation) else training.unwatched(len(parts.train))


def named_parts(column: Sequence[str]) -> dict[str, Array]:
    """Return the positions of each part that a column names.

    Raises:
        DataError: It says something else, or has no training or no test images.
    """
    said = [text.strip().lower() for text in column]
    for text in dict.fromkeys(said):
        if text and text not in PARTS:
            raise DataError(
                f"the split column says {text!r:.60}{did_you_mean(text, PARTS)}: use train, "
                "validation and test, or leave it empty"
            )
    means = np.array([PARTS.get(text, "") for text in said])
    parts = {name: np.flatnonzero(means == name) for name in dict.fromkeys(PARTS.values())}
    for name in ("train", "test"):
        if not len(parts[name]):
            raise DataError(
                f"the split column gives no image to {name!r}: mark some, or choose no column "
                "(--set target.split=none) for a random 80/20 split by patient"
            )
    return parts


def check_leak(parts: dict[str, Array], patients: Sequence[str]) -> None:
    """Refuse a split in which a patient is in two parts.

    Raises:
        DataError: Says how many, never who.
    """
    times = Counter(who for part in parts.values() for who in {patients[i] for i in part})
    leaked = sum(n > 1 for n in times.values())
    if leaked:
        raise DataError(
            f"{leaked} of {len(times)} patients are in more than one part: mend the split column, "
            "or choose none (--set target.split=none) for a random split by patient"
        )


def portion(
    positions: Array,
    patients: Sequence[str],
    strata: Array,
    share: float,
    seed: int,
    path: str,
    *,
    apart: bool = False,
) -> Array:
    """Return a stratified share of images, whole patients at a time; shares are nested.

    In each stratum patients stand in a random order, which gives each a quantile from 0 on; those
    with the lowest come first, until the share is reached. So a smaller share is part of a
    larger one, every stratum is in it in proportion, and none is without its first patient.

    Args:
        positions: Of the images, (n,).
        patients: Of each.
        strata: (n,) int; a patient is in the lowest of its images' strata.
        share: In [0, 1].
        seed: Of the order.
        path: Name of the choice: another name gives another order.
        apart: The share is not trained on: a stratum's only patient stays out of it.

    Returns:
        Sorted positions.
    """
    if not len(positions):
        return positions
    names, of = np.unique(np.array(patients), return_inverse=True)
    stratum = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(stratum, of, strata)
    draws = Draws(torch.arange(len(names)), seed=seed, path=f"split/{path}")
    shuffle = draws.uniform("order").numpy()
    quantile, alone = np.empty(len(names)), np.zeros(len(names), bool)
    for each in np.unique(stratum):
        members = np.flatnonzero(stratum == each)
        members = members[shuffle[members].argsort(kind="stable")]
        quantile[members] = np.arange(len(members)) / len(members)
        alone[members] = apart and len(members) == 1
    order = np.lexsort((stratum, quantile))
    before = np.concatenate([[0], np.bincount(of)[order].cumsum()[:-1]])
    within = before < share * len(positions)
    within |= (quantile[order] == 0) & (share > 0)
    within &= ~alone[order]
    return np.sort(positions[np.isin(of, order[within])])


def rarest_class(labels: Array) -> Array:
    """Return the rarest class that each image has, (N,): 0 the rarest of all, K without any."""
    positive = labels > 0.5
    rarest_first = positive.sum(0).argsort(kind="stable")
    ordered = positive[:, rarest_first]
    rank: Array = np.where(ordered.any(1), ordered.argmax(1), labels.shape[1])
    return rank
