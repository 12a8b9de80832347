"""The Rubik's cube Discriminator."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dira_core import (
    Backbone,
    Discriminator,
    Encodings,
    Objective,
    RecipeError,
    classification,
    in_float32,
)
from dira_rubik import RubikOptions
from dira_rubik.cubes import CUBES, SIDE, read


class Rubik(Discriminator):
    """Tell how the eight sub-cubes of a volume were moved, and which were turned or masked.

    Source: Zhuang et al., "Self-supervised Feature Learning for 3D Medical Images by Playing a
    Rubik's Cube", MICCAI 2019, arXiv:1910.02241; masks: Zhu et al., "Rubik's Cube+", MedIA 2020.
    The losses are added: cross-entropy of the permutation, binary cross-entropy of the rest. The
    volume is encoded once and whole, not cube by cube in eight siamese branches, since the Restorer
    uses the same encoding; the heads get the deepest map averaged over each cube.

    Args:
        options: Number of permutations, and what else is told.
        backbone: Gives the deepest map.
    """

    n_views = 1

    def __init__(self, options: RubikOptions, backbone: Backbone) -> None:
        super().__init__()
        self.options = options
        self.order = nn.Linear(CUBES * backbone.channels[-1], options.n_perms)
        self.turned = nn.Linear(backbone.channels[-1], 1) if options.turns else None
        self.masked = nn.Linear(backbone.channels[-1], 1) if options.masks else None

    def forward(self, encodings: Encodings) -> Objective:
        view = encodings.batch.views[0]
        if view.label is None or encodings.image(0) is not view.image:
            raise RecipeError(
                "rubik needs volumes whose cubes are moved: got others, put the distortion rubik "
                "into views.distort or views.each and set views.discriminator_sees=image"
            )
        number, turned, masked = read(view.label)
        if number.max() >= self.options.n_perms:
            raise RecipeError(
                f"rubik tells {self.options.n_perms} permutations apart: got number "
                f"{int(number.max())}, give discriminator and distortion the same n_perms"
            )
        places = average_places(encodings[0].pyramid[-1])
        objective = classification(self.order(places.flatten(1)), number)
        loss, metrics = objective.loss, dict(objective.metrics)
        for name, head, truth in (
            ("turned", self.turned, turned),
            ("masked", self.masked, masked),
        ):
            if head is not None:
                scores = head(places).squeeze(2)
                loss = loss + flags_loss(scores, truth.float())
                metrics[f"accuracy_{name}"] = ((scores > 0) == truth).float().mean()
        return Objective(loss, metrics)


@in_float32
def flags_loss(scores: Tensor, truth: Tensor) -> Tensor:
    """Return the binary cross-entropy of flags, a mean over all: (B, 8) logits, (B, 8)."""
    return binary_cross_entropy_with_logits(scores, truth)


def average_places(maps: Tensor) -> Tensor:
    """Average maps (B, C, D, H, W) over each of the eight places, in float32: (B, 8, C).

    Places of a map whose sides are odd overlap.
    """
    axes = [
        [slice(i * n // SIDE, -(-(i + 1) * n // SIDE)) for i in range(SIDE)] for n in maps.shape[2:]
    ]
    parts = [maps[:, :, z, y, x].float().mean((2, 3, 4)) for z, y, x in product(*axes)]
    return torch.stack(parts, 1)
