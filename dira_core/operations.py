"""The distortions of a recipe at work: which images each one is applied to, and how."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dira_core.components import Choice, DistortionOptions
from dira_core.contracts import demand, shape_flaw
from dira_core.draws import Draws
from dira_core.plugins import make
from dira_core.roles import Change, Distortion
from dira_core.types import LEVEL

Todo = Sequence[Sequence[Change]]
"""What is to be done to each image of a batch, one after the other."""


def build_distortion(choice: Choice) -> Distortion:
    """Build a distortion a recipe chose.

    Raises:
        RecipeError: No distortion has this name.
        PluginError: The plugin that offers it is broken, or raised.
    """
    distortion: Distortion = make("distortion", choice, wanted=Distortion)
    return distortion


def distort(distortion: Distortion, images: Tensor, draws: Draws, p: float) -> Tensor:
    """Apply a distortion to the images that `draws` picks, each with probability p.

    The picked rows are `draws.bernoulli("p", p)`; the others come back as they were.

    Args:
        images: (B, C, *S); never written into.
    """
    rows = picked(draws, p)
    return distort_rows(Drawn(distortion, rows, draws.select(rows)), images)


def picked(draws: Draws, p: float) -> Tensor:
    """Return the rows of a batch that an operation of probability p is applied to, (N,) int64."""
    if p >= 1:
        return torch.arange(draws.batch_size, device=draws.device)
    return draws.bernoulli("p", p).nonzero().squeeze(1)


class Operation:
    """A distortion, how often it is applied, and whether it makes labels."""

    def __init__(self, choice: Choice, device: torch.device) -> None:
        assert isinstance(choice.options, DistortionOptions)
        self.name, self.p = choice.name, choice.options.p
        distortion = build_distortion(choice)
        anyone = Draws(torch.zeros(1, dtype=torch.int64), seed=0)
        self.labels = distortion.label(anyone) is not None
        self.distortion = distortion.to(device)


class Drawn(NamedTuple):
    """A distortion and the images of a batch that it is applied to.

    Attributes:
        distortion: What is applied.
        rows: To these images, (N,) int64.
        draws: Theirs.
        labels: Whether it makes labels.
    """

    distortion: Distortion
    rows: Tensor
    draws: Draws
    labels: bool = False


def mirrors(geometry: Sequence[Operation]) -> list[Operation]:
    """Return the operations at the front of a geometry that only mirror: crops are cut by them."""
    return list(itertools.takewhile(lambda operation: operation.distortion.mirrors, geometry))


def drawn(operations: Sequence[Operation], draws: Draws, first: int = 0) -> list[Drawn]:
    """Pick the images that each operation is applied to; `first` is the number of the first."""
    found = []
    for number, operation in enumerate(operations, start=first):
        own = draws.child(str(number))
        rows = picked(own, operation.p)
        found.append(Drawn(operation.distortion, rows, own.select(rows), operation.labels))
    return found


def moved(group: Sequence[Drawn], box: Tensor) -> Tensor:
    """Return where crops lie after some operations, (B, len(S), 2)."""
    for distortion, rows, draws, _ in group:
        box = box.index_copy(0, rows, distortion.box(box[rows], draws))
    return box


def label_of(group: Sequence[Drawn], images: int) -> Tensor | None:
    """Return the label (B,) that the labelling operation made, 0 where it was not applied."""
    for distortion, rows, draws, labels in group:
        label = distortion.label(draws) if labels else None
        if label is not None:
            none = torch.zeros(images, dtype=label.dtype, device=label.device)
            return none.index_copy(0, rows, label)
    return None


def distort_rows(drawn: Drawn, images: Tensor) -> Tensor:
    """Apply a distortion to its rows of images (B, C, *S); the others come back as they were."""
    distortion, rows, draws, _ = drawn
    if len(rows) == 0:
        return images
    every = len(rows) == len(images)
    chosen = images if every else images[rows]
    distorted: Tensor = distortion(chosen, draws)
    demand(distortion, shape_flaw("forward", distorted, chosen.shape))
    return distorted if every else images.index_copy(0, rows, distorted)


def plan(group: Sequence[Drawn], images: int, shape: Sequence[int]) -> Todo | None:
    """Return what is to be done to images (C, *S), or None where batches are better."""
    todo: list[list[Change]] = [[] for _ in range(images)]
    for distortion, rows, draws, _ in group:
        changes = distortion.by_image(draws, shape)
        if changes is None:
            return None
        for row, change in zip(rows.tolist(), changes, strict=True):
            todo[row].append(change)
    return todo


def change_images(images: Iterable[np.ndarray], todo: Todo, results: np.ndarray) -> None:
    """Take images through a plan, one after the other: each stays in the processor's cache.

    Args:
        images: B of them, (C, *S) each, float32 in [0, 1], or bytes.
        todo: What is to be done to each.
        results: Where they are written, (B, C, *S) float32.
    """
    for image, changes, place in zip(images, todo, results, strict=True):
        place[...] = image
        if image.dtype == np.uint8:
            np.multiply(place, LEVEL, out=place)
        changed = place
        for change in changes:
            changed = change(changed)
        if changed is not place:
            place[...] = changed
