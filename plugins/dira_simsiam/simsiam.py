"""The SimSiam Discriminator."""

from __future__ import annotations

from typing import Any

from dira_core import Backbone, Discriminator, Encodings, Objective, mlp, negative_cosine
from dira_simsiam import SimSiamOptions


class SimSiam(Discriminator):
    """Let the prediction of each view match the other's embedding, whose gradient is stopped.

    Source: Chen & He, "Exploring Simple Siamese Representation Learning", CVPR 2021,
    arXiv:2011.10566, eq. 4 and algorithm 1. The paper starts the backbone's residual branches at
    zero; that is the backbone's own option.

    Args:
        options: Widths of the heads.
        backbone: Gives the features, (B, backbone.channels[-1]).
    """

    n_views = 2

    def __init__(self, options: SimSiamOptions, backbone: Backbone) -> None:
        super().__init__()
        dim, hidden = options.dim, options.hidden
        self.projector = mlp([backbone.channels[-1], dim, dim, dim], last_norm=True)
        self.predictor = mlp([dim, hidden, dim])

    def forward(self, encodings: Encodings) -> Objective:
        z1, z2 = (self.projector(encodings[view].pooled) for view in range(2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2
        return Objective(loss, embedding=z1)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the projector, and the predictor at a constant rate."""
        return [
            {"params": list(self.projector.parameters())},
            {"params": list(self.predictor.parameters()), "schedule": "constant"},
        ]
