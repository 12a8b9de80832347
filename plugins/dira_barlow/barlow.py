"""The Barlow Twins Discriminator."""

from __future__ import annotations

import torch

from dira_barlow import BarlowOptions
from dira_core import (
    Backbone,
    Discriminator,
    Encodings,
    Objective,
    barlow_twins,
    gather_rows,
    mlp,
)


class Barlow(Discriminator):
    """Bring the cross-correlation of two views' embeddings to the identity.

    Source: Zbontar et al., "Barlow Twins", ICML 2021, arXiv:2103.03230, eq. 1. Correlations are
    those of the global batch.

    Args:
        options: Width of the projector, weights.
        backbone: Gives the features, (B, backbone.channels[-1]).
    """

    n_views = 2

    def __init__(self, options: BarlowOptions, backbone: Backbone) -> None:
        super().__init__()
        self._options = options
        widths = [backbone.channels[-1], *3 * [options.dim]]
        # the last norm is the loss's own, which sees the global batch
        self.projector = mlp(widths, last_norm=True)[:-1]

    def forward(self, encodings: Encodings) -> Objective:
        z1, z2 = (self.projector(encodings[view].pooled) for view in range(2))
        rows = gather_rows(torch.stack([z1, z2], dim=1), same_loss=True)
        loss = barlow_twins(rows[:, 0], rows[:, 1], self._options.lambd)
        return Objective(self._options.scale * loss, embedding=z1)
