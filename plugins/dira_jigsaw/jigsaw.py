"""The jigsaw Discriminator, and the distortion that makes its labels."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
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
from dira_jigsaw import JigsawOptions, ShuffleOptions

SIDE = 3
"""Tiles along each axis."""


class Jigsaw(Discriminator):
    """Tell which permutation shuffled the tiles of an image.

    Source: Noroozi & Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw
    Puzzles", ECCV 2016, arXiv:1603.09246. The shuffled image is encoded once and whole, as by
    Carlucci et al., CVPR 2019, arXiv:1903.06864, not tile by tile in nine siamese branches: the
    Restorer uses the same encoding. What the branches keep apart, the features of each place, the
    head still gets: the deepest map averaged over each of the nine.

    Args:
        options: Number of permutations.
        backbone: Gives the deepest map.
    """

    n_views = 1

    def __init__(self, options: JigsawOptions, backbone: Backbone) -> None:
        super().__init__()
        self._n_perms = options.n_perms
        self.head = nn.Linear(SIDE**2 * backbone.channels[-1], options.n_perms)

    def forward(self, encodings: Encodings) -> Objective:
        view, seen = encodings.batch.views[0], encodings.image(0)
        if view.label is None or seen is not view.image:
            raise RecipeError(
                "jigsaw needs images whose tiles are shuffled: got others, put the distortion "
                "jigsaw into views.distort or views.each and set views.discriminator_sees=image"
            )
        if view.label.max() >= self._n_perms:
            raise RecipeError(
                f"jigsaw tells {self._n_perms} permutations apart: got number "
                f"{int(view.label.max())}, give discriminator and distortion the same n_perms"
            )
        return classification(self.head(average_places(encodings[0].pyramid[-1])), view.label)


def average_places(maps: Tensor) -> Tensor:
    """Average maps (B, C, H, W) over each of the nine places, in float32: (B, 9 C).

    Places of a map whose sides three does not divide overlap, as in adaptive average pooling, whose
    gradient on a GPU differs from run to run.
    """
    rows, columns = (
        [slice(i * extent // SIDE, -(-(i + 1) * extent // SIDE)) for i in range(SIDE)]
        for extent in maps.shape[2:]
    )
    return torch.cat([maps[:, :, r, c].float().mean((2, 3)) for r in rows for c in columns], 1)


class Shuffle(Distortion):
    """Shuffle the tiles of each image by one of some permutations, each as often.

    The tiles touch: the gaps of the paper (up to 21 px, against solving by edges) would be lost to
    the Restorer, whose target is the image before.
    """

    orders: Tensor

    def __init__(self, options: ShuffleOptions) -> None:
        super().__init__()
        self.register_buffer("orders", permutations(options.n_perms))

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, H, W), shuffled."""
        return shuffle_tiles(images, self.orders[self.label(draws)])

    def label(self, draws: Draws) -> Tensor:
        """Return the number of the permutation, (B,) int64; 0 leaves an image as it is."""
        return draws.integers("order", 0, len(self.orders))


def shuffle_tiles(images: Tensor, order: Tensor) -> Tensor:
    """Put tile `order[b, i]` of image b at place i, places counted row by row.

    Rows and columns that are left over at the far ends stay where they are.

    Args:
        images: (B, C, H, W).
        order: (B, 9) int64, permutations.
    """
    batch, channels = images.shape[:2]
    height, width = (extent // SIDE for extent in images.shape[2:])
    tiled = (..., slice(SIDE * height), slice(SIDE * width))
    grid = images[tiled].reshape(batch, channels, SIDE, height, SIDE, width)
    tiles = grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = tiles[torch.arange(batch, device=images.device)[:, None], order]
    grid = moved.view(batch, SIDE, SIDE, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    shuffled = images.clone()
    shuffled[tiled] = grid.reshape(batch, channels, SIDE * height, SIDE * width)
    return shuffled


@cache
def permutations(n: int) -> Tensor:
    """Return n permutations of nine tiles that differ much, (n, 9) int64, the identity first.

    Each is the first, in lexical order, of those farthest (Hamming) from the nearest one before.
    The paper's algorithm 1 takes the largest mean distance instead. Nine that form a Latin square
    have the same mean distance to all others, and some of those differ in two tiles only.
    """
    numbers = itertools.chain.from_iterable(itertools.permutations(range(SIDE**2)))
    every = torch.from_numpy(np.fromiter(numbers, np.int8).reshape(-1, SIDE**2).T.copy())
    chosen, nearest = [0], torch.full(every.shape[1:], SIDE**2 + 1, dtype=torch.int8)
    for _ in range(n - 1):
        differ = (every != every[:, chosen[-1], None]).sum(0, dtype=torch.int8)
        nearest = torch.minimum(nearest, differ)
        chosen.append(int(nearest.argmax()))
    return every[:, chosen].T.long()
