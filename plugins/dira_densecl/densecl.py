"""The DenseCL Discriminator."""

from __future__ import annotations

import torch
from torch import Tensor

from dira_core import (
    Backbone,
    Discriminator,
    Encodings,
    Objective,
    Progress,
    Queue,
    Teacher,
    cells,
    gather_rows,
    in_float32,
    info_nce,
    mlp,
    pool,
    unit,
)
from dira_densecl import DenseCLOptions

LONGEST = 65_536
"""Keys in a queue whose size is left to the data, at most: what the paper uses."""


class DenseCL(Discriminator):
    """Tell the other view's key of an image, and of each cell of its map, from queues of others.

    Source: Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", CVPR
    2021, arXiv:2011.09157, eq. 1 to 4. View 0 is the query, view 1 the key. The negatives of cells
    are images: their cells' embeddings averaged.

    Deviations, as in our MoCo-v2: averaged batch-norm statistics in the teacher instead of shuffled
    keys, and neither an image's own earlier keys nor the random vectors a queue starts with are
    negatives of it or its cells.

    Args:
        options: Sizes, temperature, weights.
        backbone: Gives the deepest map, (B, backbone.channels[-1], *S).
    """

    n_views = 2
    queue: Queue
    dense_queue: Queue

    def __init__(self, options: DenseCLOptions, backbone: Backbone) -> None:
        super().__init__()
        self._options = options
        width, dims = backbone.channels[-1], backbone.dims
        self.projector = mlp([width, width, options.dim], norm=False)
        self.dense_projector = mlp([width, width, options.dim], dims=dims, norm=False)
        self.teacher = Teacher([backbone, self.projector, self.dense_projector], average_norm=True)

    def prepare(self, n_images: int) -> None:
        """Make the queues, of images and of their averaged cells."""
        size = self._options.queue or min(n_images, LONGEST)
        self.queue, self.dense_queue = (Queue(size, self._options.dim) for _ in range(2))

    def forward(self, encodings: Encodings) -> Objective:
        temperature, index = self._options.temperature, encodings.batch.index
        deepest = encodings[0].pyramid[-1]
        query = unit(self.projector(encodings[0].pooled))
        queries = cells(self.dense_projector(deepest))
        key, keys, average, key_map = self._keys(encodings.image(1))
        match = correspondence(deepest.detach(), key_map)[..., None]
        matched = keys.gather(1, match.expand(-1, -1, keys.shape[2]))
        own = self.queue.excluded(index)
        whole = info_nce(query, key, self.queue.keys, temperature, own)
        parts = info_nce(queries, matched, self.dense_queue.keys, temperature, own)
        if self.training:
            self.queue.push(gather_rows(key), gather_rows(index))
            self.dense_queue.push(gather_rows(average), gather_rows(index))
        loss = (1 - self._options.dense) * whole + self._options.dense * parts
        return Objective(loss, {"image": whole, "cells": parts}, query)

    def after_step(self, progress: Progress) -> None:
        """Let the teacher follow."""
        self.teacher.update(self._options.momentum)

    @torch.no_grad()
    def _keys(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the teacher's key, cells' keys, their averaged key and deepest map of images."""
        deepest = self.teacher[0](images)[-1]
        key, projected = unit(self.teacher[1](pool(deepest))), self.teacher[2](deepest)
        return key, cells(projected), unit(pool(projected)), deepest


@in_float32
def correspondence(maps: Tensor, others: Tensor) -> Tensor:
    """Return which cell of the other map is most similar to each cell, by the cosine (eq. 3).

    Args:
        maps: (B, C, *S) with N cells.
        others: (B, C, *S') of the same images.

    Returns:
        (B, N) int64.
    """
    return (cells(maps) @ cells(others).mT).argmax(2)
