"""The BYOL Discriminator."""

from __future__ import annotations

from dira_byol import BYOLOptions
from dira_core import (
    Backbone,
    Discriminator,
    Encodings,
    Objective,
    Progress,
    Teacher,
    mlp,
    negative_cosine,
    rising_momentum,
)


class BYOL(Discriminator):
    """Predict from each view the embedding that a slow teacher gives the other one.

    Source: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, arXiv:2006.07733, eq. 1 and 2,
    made symmetric: the loss lies in [0, 8]. The teacher copies backbone and projector.

    Args:
        options: Widths of the heads, momentum.
        backbone: Gives the features, (B, backbone.channels[-1]).
    """

    n_views = 2

    def __init__(self, options: BYOLOptions, backbone: Backbone) -> None:
        super().__init__()
        self._momentum = options.momentum
        self.projector = mlp([backbone.channels[-1], options.hidden, options.dim])
        self.predictor = mlp([options.dim, options.hidden, options.dim])
        self.teacher = Teacher([backbone, self.projector])

    def forward(self, encodings: Encodings) -> Objective:
        z1, z2 = (self.projector(encodings[view].pooled) for view in range(2))
        t1, t2 = (self.teacher(encodings.image(view)) for view in range(2))
        one = negative_cosine(self.predictor(z1), t2)
        other = negative_cosine(self.predictor(z2), t1)
        return Objective(4 + 2 * (one + other), embedding=z1)

    def after_step(self, progress: Progress) -> None:
        """Let the teacher follow, slower and slower."""
        self.teacher.update(rising_momentum(self._momentum, progress.fraction))
