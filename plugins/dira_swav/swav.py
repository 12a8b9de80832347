"""The SwAV Discriminator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dira_core import (
    Backbone,
    Discriminator,
    Encodings,
    FeaturePass,
    Objective,
    Progress,
    Queue,
    gather_rows,
    in_float32,
    mlp,
)
from dira_swav import SwAVOptions

IMAGES_PER_PROTOTYPE = 10
"""With fewer images, prototypes are left out: clusters of single images teach nothing."""


class SwAV(Discriminator):
    """Predict the prototypes that one of two large crops is assigned to from all other crops.

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster
    Assignments", NeurIPS 2020, arXiv:2006.09882, eq. 1 to 6. Prototypes are unit vectors after
    every step. Assigned are the rows of the global batch, and from its epoch on those of the queue,
    which is filled from the first step: both views of an image are one row, (2 dim,).

    Args:
        options: Crops, sizes, assignment.
        backbone: Gives the features, (B, backbone.channels[-1]), whatever the size of a crop.

    Attributes:
        step: Optimizer steps done, () int64; those of earlier stages too.
        epoch: Of the step to come, () int64.
    """

    step: Tensor
    epoch: Tensor

    def __init__(self, options: SwAVOptions, backbone: Backbone) -> None:
        super().__init__()
        self._options = options
        self.n_views = 2 + options.small_views
        self.projector = mlp([backbone.channels[-1], options.hidden, options.dim])
        self.prototypes = nn.Parameter(F.normalize(torch.randn(options.prototypes, options.dim)))
        self.queue: Queue | None = None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def prepare(self, n_images: int) -> None:
        """Fit prototypes and queue to the source."""
        many = max(2, n_images // IMAGES_PER_PROTOTYPE)
        self.prototypes = nn.Parameter(self.prototypes.detach()[:many].clone())
        size = min(self._options.queue, n_images)
        self.queue = Queue(size, 2 * self._options.dim) if size else None

    def forward(self, encodings: Encodings) -> Objective:
        pooled = [encodings[view].pooled for view in range(self.n_views)]
        z = self.projector(torch.cat(pooled)).float().unflatten(0, (self.n_views, -1))
        unit = gather_rows(F.normalize(z, dim=2, eps=1e-4).transpose(0, 1)).transpose(0, 1)
        frozen = self.step < self._options.freeze_steps
        prototypes = torch.where(frozen, self.prototypes.detach(), self.prototypes)
        scores = cosines(unit, prototypes.float())
        codes = torch.stack([self._assign(scores[view], view) for view in range(2)])
        if self.training and self.queue is not None:
            pairs = unit[:2].transpose(0, 1).flatten(1)
            self.queue.push(pairs, gather_rows(encodings.batch.index))
        return Objective(swapped(scores, codes, self._options.temperature), embedding=z[0])

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the projector, and the prototypes, whose length decay would only undo."""
        return [
            {"params": list(self.projector.parameters())},
            {"params": [self.prototypes], "weight_decay": 0.0},
        ]

    def epoch_started(self, progress: Progress, features: FeaturePass) -> None:
        """Note the epoch."""
        self.epoch.fill_(progress.epoch)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Bring the prototypes back to length 1."""
        self.prototypes.copy_(F.normalize(self.prototypes))
        self.step.add_(1)  # a stage goes on where the one before it ended

    @torch.no_grad()
    def _assign(self, scores: Tensor, view: int) -> Tensor:
        """Return the codes of a view, (B, K), with the help of the queue."""
        n_rows, options, queue = len(scores), self._options, self.queue
        if queue is not None and self.epoch >= options.queue_epoch:
            earlier = queue.keys[queue.index >= 0].chunk(2, dim=1)[view]
            scores = torch.cat([scores, cosines(earlier, self.prototypes)])
        return sinkhorn(scores, options.epsilon, options.iterations)[:n_rows]


@in_float32
def cosines(unit: Tensor, prototypes: Tensor) -> Tensor:
    """Compare unit vectors (..., D) with prototypes (K, D): (..., K)."""
    return unit @ prototypes.T


@in_float32
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign rows to prototypes softly, such that every prototype gets its share.

    Source: Caron et al., eq. 3 to 5 (Cuturi, NeurIPS 2013, algorithm 1). Only two vectors are
    updated; the rows are scaled last.

    Args:
        scores: Cosines, (N, K).
        epsilon: Softness; above 0.023 in float32.
        iterations: At least 1.

    Returns:
        Codes, (N, K): rows add up to 1, columns (the more iterations, the nearer) to N / K.
    """
    kernel = ((scores - scores.max()) / epsilon).exp()
    rows = torch.ones_like(kernel[:, 0])
    for _ in range(iterations):
        columns = 1 / (rows @ kernel)
        rows = 1 / (kernel @ columns)
    return rows[:, None] * kernel * columns


def swapped(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Predict the codes of each assigned view from the scores of every other view.

    Source: Caron et al., eq. 2 and 6: cross-entropy, mean over pairs of views and images.

    Args:
        scores: Cosines of all views, (V, B, K), the assigned ones first.
        codes: Of the assigned views, (A, B, K).
        temperature: Divides the scores.
    """
    log_p = (scores / temperature).log_softmax(2)
    others = log_p.sum(0) - log_p[: len(codes)]
    return -(codes * others).sum(2).mean() / (len(scores) - 1)
