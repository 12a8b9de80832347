"""The rotation Discriminator, and the distortion that makes its labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dira_core import (
    Backbone,
    Discriminator,
    Distortion,
    Draws,
    Encodings,
    Objective,
    RecipeError,
    classification,
)

TURNS = 4
"""Quarter turns that can be told apart."""


class Rotation(Discriminator):
    """Tell by how many quarter turns an image was rotated, from its pooled features.

    Source: Gidaris et al., "Unsupervised Representation Learning by Predicting Image Rotations",
    ICLR 2018, arXiv:1803.07728, eq. 2. The paper puts all four rotations of an image into a batch;
    here an image has one at a time, drawn anew each epoch: the same expectation, and a Restorer has
    one target.

    Args:
        backbone: Gives the features, (B, backbone.channels[-1]).
    """

    n_views = 1

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.head = nn.Linear(backbone.channels[-1], TURNS)

    def forward(self, encodings: Encodings) -> Objective:
        label = encodings.batch.views[0].label
        if label is None or label.max() >= TURNS:
            got = "none" if label is None else f"label {int(label.max())}"
            raise RecipeError(
                f"rotation needs views labelled with 0 to {TURNS - 1} quarter turns: got {got}, "
                "put rotate90 into views.geometry or views.each"
            )
        return classification(self.head(encodings[0].pooled), label)


class Rotate90(Distortion):
    """Rotate square images by 0 to 3 quarter turns, counter-clockwise, each as often."""

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, H, H), rotated."""
        if images.shape[-1] != images.shape[-2]:
            raise RecipeError(f"rotate90 needs square images: got {(*images.shape[2:],)}")
        turns = self.label(draws).view(-1, 1, 1, 1)
        rotated = images
        for number in range(1, TURNS):
            rotated = torch.where(turns == number, images.rot90(number, (-2, -1)), rotated)
        return rotated

    def box(self, box: Tensor, draws: Draws) -> Tensor:
        """Return (B, 2, 2): a half turn swaps the edges of both axes.

        After one or three quarter turns the edges are NaN: the axes have changed places, which a
        box cannot say, and a wrong place is worse than none (no distance to NaN is small).
        """
        turns = self.label(draws).view(-1, 1, 1)
        return box.where(turns != 2, box.flip(-1)).masked_fill(turns % 2 == 1, torch.nan)

    def label(self, draws: Draws) -> Tensor:
        """Return the number of quarter turns, (B,) int64."""
        return draws.integers("turns", 0, TURNS)
