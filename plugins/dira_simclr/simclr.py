"""The SimCLR Discriminator."""

from __future__ import annotations

import torch

from dira_core import Backbone, Discriminator, Encodings, Objective, gather_rows, mlp, nt_xent
from dira_simclr import SimCLROptions


class SimCLR(Discriminator):
    """Tell each embedding's other view from the embeddings of both views of all images.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations",
    ICML 2020, arXiv:2002.05709, eq. 1 and algorithm 1. Negatives are those of the global batch: the
    larger it is, the more there are. The hidden layer has a batch norm; the last one, as the
    paper writes the head, has none.

    Args:
        options: Widths of the head, temperature.
        backbone: Gives the features, (B, backbone.channels[-1]).
    """

    n_views = 2

    def __init__(self, options: SimCLROptions, backbone: Backbone) -> None:
        super().__init__()
        self._temperature = options.temperature
        self.projector = mlp([backbone.channels[-1], options.hidden, options.dim])

    def forward(self, encodings: Encodings) -> Objective:
        z1, z2 = (self.projector(encodings[view].pooled) for view in range(2))
        rows = gather_rows(torch.stack([z1, z2], dim=1), same_loss=True)
        loss = nt_xent(rows[:, 0], rows[:, 1], self._temperature)
        return Objective(loss, embedding=z1)
