"""The choice between distortions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from torch import Tensor, nn

from dira_core import Change, Distortion, Draws, RecipeError


def _as_it_is(image: np.ndarray) -> np.ndarray:
    return image


class OneOf(Distortion):
    """Apply one distortion of several to each image, or none.

    Args:
        weights: Probability of each; what is missing to 1 leaves images as they are.
        parts: The distortions, each with the probability that it is applied when chosen.
    """

    def __init__(self, weights: Sequence[float], parts: Sequence[tuple[Distortion, float]]) -> None:
        super().__init__()
        self.weights = [*weights, max(0.0, 1 - sum(weights))]
        self.distortions = nn.ModuleList(distortion for distortion, _ in parts)
        self.p = [p for _, p in parts]
        self.mirrors = all(distortion.mirrors for distortion, _ in parts)

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S), each image with its own distortion."""
        distorted = images.clone()
        for distortion, rows, own in self._chosen(draws):
            if len(rows):
                distorted[rows] = distortion(images[rows], own)
        return distorted

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what was chosen for each image; None where a choice is made in batches only."""
        changes: list[Change] = [_as_it_is] * draws.batch_size
        for distortion, rows, own in self._chosen(draws):
            chosen = distortion.by_image(own, shape)
            if chosen is None:
                return None
            for row, change in zip(rows.tolist(), chosen, strict=True):
                changes[row] = change
        return changes

    def box(self, box: Tensor, draws: Draws) -> Tensor:
        """Return where the crops lie after a geometric choice, (B, len(S), 2)."""
        moved = box.clone()
        for distortion, rows, own in self._chosen(draws):
            moved[rows] = distortion.box(box[rows], own)
        return moved

    def label(self, draws: Draws) -> Tensor | None:
        """Return the labels of the one choice that makes some, (B,); 0 where it was not applied."""
        label: Tensor | None = None
        for distortion, rows, own in self._chosen(draws):
            made = distortion.label(own)
            if made is not None and label is not None:
                raise RecipeError(
                    "one-of passes one kind of label on: got two distortions that make some, leave "
                    "one of them"
                )
            if made is not None:
                label = made.new_zeros(draws.batch_size).index_copy_(0, rows, made)
        return label

    def _chosen(self, draws: Draws) -> Iterator[tuple[Distortion, Tensor, Draws]]:
        """Yield each distortion with the rows it is applied to, and its draws for them."""
        chosen = draws.choice("chosen", self.weights)
        for number, (distortion, p) in enumerate(zip(self.distortions, self.p, strict=True)):
            rows = (chosen == number).nonzero().squeeze(1)
            own = draws.child(str(number)).select(rows)
            if p < 1:
                picked = own.bernoulli("p", p)
                rows, own = rows[picked], own.select(picked)
            yield cast(Distortion, distortion), rows, own
