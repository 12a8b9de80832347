"""Distortions that move the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dira_core import Change, Distortion, Draws, RecipeError
from dira_distortions import FlipOptions


def flipped(image: np.ndarray, axis: int) -> np.ndarray:
    """Mirror an image (C, *S) along an axis; torch is three times as fast at it as numpy."""
    mirrored: np.ndarray = torch.from_numpy(image).flip(axis).numpy()
    return mirrored


class Flip(Distortion):
    """Mirror images along one axis; `box` swaps the edges of that axis."""

    mirrors = True

    def __init__(self, options: FlipOptions) -> None:
        super().__init__()
        self.axis = options.axis

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S), mirrored."""
        self._check(images.dim() - 2)
        return images.flip(self.axis)

    def by_image(self, draws: Draws, shape: Sequence[int]) -> Sequence[Change] | None:
        """Return what mirrors each image."""
        self._check(len(shape) - 1)
        return [partial(flipped, axis=self.axis)] * draws.batch_size

    def _check(self, axes: int) -> None:
        if -self.axis > axes:
            raise RecipeError(
                f"flip needs a spatial axis: got {self.axis} for {axes}-D images, use -1 for the "
                "last one"
            )

    def box(self, box: Tensor, draws: Draws) -> Tensor:
        """Return (B, len(S), 2) with the edges of the axis swapped."""
        self._check(box.shape[1])
        flipped = box.clone()
        flipped[:, self.axis] = box[:, self.axis].flip(-1)
        return flipped
