"""The rotation Discriminator, and the distortion that makes its labels."""

from __future__ import annotations

from itertools import combinations

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

PLANES = {dims: [*combinations(range(-1, -dims - 1, -1), 2)] for dims in (2, 3)}
"""Pairs of axes that a turn is within: (-1, -2) within slices, then about height and width."""

NAMES = {2: ("rotation", "rotate90"), 3: ("rotation3d", "rotate3d")}


def rotations(dims: int) -> list[tuple[int, tuple[int, int]]]:
    """Return quarter turns and plane of each label from 1 on: 3 for images, 9 for volumes."""
    return [(turns, plane) for plane in PLANES[dims] for turns in range(1, TURNS)]


class Rotation(Discriminator):
    """Tell how an image was rotated, from its pooled features.

    Source: Gidaris et al., "Unsupervised Representation Learning by Predicting Image Rotations",
    ICLR 2018, arXiv:1803.07728, eq. 2; of volumes: Taleb et al., "3D Self-Supervised Methods for
    Medical Imaging", NeurIPS 2020, arXiv:2006.03829, whose ten classes are the volume as it is and
    three turns about each of three axes. The papers put all rotations of an image into a batch;
    here an image has one at a time, drawn anew each epoch: the same expectation, and a Restorer has
    one target.

    Args:
        backbone: Gives the features, (B, backbone.channels[-1]).
    """

    n_views = 1

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._dims, self._classes = backbone.dims, 1 + len(rotations(backbone.dims))
        self.head = nn.Linear(backbone.channels[-1], self._classes)

    def forward(self, encodings: Encodings) -> Objective:
        label = encodings.batch.views[0].label
        if label is None or label.max() >= self._classes:
            name, distortion = NAMES[self._dims]
            got = "none" if label is None else f"label {int(label.max())}"
            raise RecipeError(
                f"{name} needs views labelled with 0 to {self._classes - 1}, how they are turned: "
                f"got {got}, put {distortion} into views.geometry or views.each"
            )
        return classification(self.head(encodings[0].pooled), label)


class Rotate(Distortion):
    """Rotate squares or cubes by quarter turns within one plane, each rotation as often.

    Label 0 is the image as it is; label 3 k + n is n quarter turns in plane k of `PLANES`, from the
    second of its axes to the first: within slices counter-clockwise.

    Args:
        dims: Spatial axes of the images.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self._dims = dims

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, *S), rotated."""
        if len({*images.shape[2:]}) > 1:
            shape, name = ("square images", "cubes")[self._dims - 2], NAMES[self._dims][1]
            raise RecipeError(
                f"{name} needs {shape}: got {(*images.shape[2:],)}, set views.size to equal sides"
            )
        label = self.label(draws)
        rotated = images.clone()
        for number, (turns, (last, first)) in enumerate(rotations(self._dims), 1):
            rows = (label == number).nonzero().squeeze(1)
            rotated[rows] = images[rows].rot90(turns, (first, last))
        return rotated

    def box(self, box: Tensor, draws: Draws) -> Tensor:
        """Return (B, dims, 2): a half turn swaps the edges of the axes it is within.

        After one or three quarter turns these edges are NaN: the axes have changed places, which a
        box cannot say, and a wrong place is worse than none (no distance to NaN is small).
        """
        moved = torch.zeros(1 + len(rotations(self._dims)), self._dims, 1, dtype=torch.int64)
        for number, (turns, plane) in enumerate(rotations(self._dims), 1):
            moved[number, list(plane)] = turns
        turns_of_axis = moved.to(box.device)[self.label(draws)]
        swapped = box.where(turns_of_axis != 2, box.flip(-1))
        return swapped.masked_fill(turns_of_axis % 2 == 1, torch.nan)

    def label(self, draws: Draws) -> Tensor:
        """Return the number of the rotation, (B,) int64."""
        return draws.integers("turns", 0, 1 + len(rotations(self._dims)))
