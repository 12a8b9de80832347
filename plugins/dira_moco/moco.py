"""The MoCo-v2 Discriminator."""

from __future__ import annotations

from dira_core import (
    Backbone,
    Discriminator,
    Encodings,
    Objective,
    Progress,
    Queue,
    Teacher,
    gather_rows,
    info_nce,
    mlp,
    unit,
)
from dira_moco import MoCoOptions

SHORTEST, LONGEST = 64, 65_536
"""Keys in a queue whose size is left to the data: a twentieth of the source, as the paper's of
ImageNet, within these."""

SLOWEST = 0.999
"""Momentum left to the length of the run, at most: what the paper uses."""


class MoCo(Discriminator):
    """Tell the teacher's key of the other view from a queue of earlier keys of other images.

    Source: He et al., "Momentum Contrast", CVPR 2020, arXiv:1911.05722, eq. 1, 2 and algorithm 1;
    Chen et al., "Improved Baselines with Momentum Contrastive Learning", arXiv:2003.04297: the
    head of two layers. View 0 is the query, view 1 the key. The teacher copies backbone and
    projector, nothing else: a decoder is none of its business.

    Deviations by default, which options undo, for sources of thousands of images instead of
    millions. Negatives are keys of other images, those of the batch at hand among them: not the
    earlier keys of the image itself, and not the random vectors that a queue starts with. All real
    keys are alike at first, so telling them from random ones collapses the embedding within an
    epoch, and so does telling new keys from stale ones: the queue is a twentieth of the source. The
    teacher averages the last tenth of the run, and its batch norms use averaged statistics.

    Args:
        options: Sizes, temperature, teacher.
        backbone: Gives the features, (B, backbone.channels[-1]).
    """

    n_views = 2

    def __init__(self, options: MoCoOptions, backbone: Backbone) -> None:
        super().__init__()
        self._options = options
        width = backbone.channels[-1]
        self.projector = mlp(
            [width, width, options.dim], norm=options.head_norm, last_norm=options.head_norm
        )
        average = options.key_norm == "average"
        self.teacher = Teacher([backbone, self.projector], average_norm=average)

    def prepare(self, n_images: int) -> None:
        """Make the queue."""
        fitted = min(n_images, LONGEST, max(SHORTEST, n_images // 20))
        self.queue = Queue(self._options.queue or fitted, self._options.dim)

    def forward(self, encodings: Encodings) -> Objective:
        query = unit(self.projector(encodings[0].pooled))
        key, index = unit(self.teacher(encodings.image(1))), encodings.batch.index
        others_only = self._options.others_only
        if self.training and others_only:
            self.queue.push(gather_rows(key), gather_rows(index))
        out = self.queue.excluded(index) if others_only else None
        loss = info_nce(query, key, self.queue.keys, self._options.temperature, out)
        if self.training and not others_only:
            self.queue.push(gather_rows(key), gather_rows(index))
        return Objective(loss, {"cosine": (query * key).sum(1).mean()}, query)

    def after_step(self, progress: Progress) -> None:
        """Let the teacher follow (eq. 2)."""
        momentum = self._options.momentum
        if momentum is None:
            momentum = max(0.0, min(SLOWEST, 1 - 10 / max(1, progress.total_steps)))
        self.teacher.update(momentum)
