"""The distortion that moves, turns and masks sub-cubes."""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

from dira_core import Distortion, Draws
from dira_rubik import CubesOptions

SIDE = 2
"""Cubes along each axis."""

CUBES = SIDE**3

MASK = 0.5
"""Part of a masked cube's voxels that are black."""


class Cubes(Distortion):
    """Move eight sub-cubes by one of some permutations, turn some by 180 degrees, mask some.

    A turn is within slices. A masked cube has half of its voxels black, whichever. The cubes touch:
    the gaps of the paper (10 voxels, against solving by edges) would be lost to the Restorer, whose
    target is the volume before.
    """

    orders: Tensor

    def __init__(self, options: CubesOptions) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("orders", permutations(options.n_perms))

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Return (B, C, D, H, W); slices, rows and columns left over at the far ends stay."""
        number, turned, masked = self._moves(draws)
        depth, height, width = (extent // SIDE * SIDE for extent in images.shape[2:])
        cubes = apart(images[:, :, :depth, :height, :width])
        rows = torch.arange(len(images), device=images.device)[:, None]
        cubes = cubes[rows, self.orders[number]]
        cubes = torch.where(along(turned, cubes), cubes.flip((-1, -2)), cubes)
        if self.options.masked:
            black = draws.bernoulli("voxels", MASK, cubes.shape[1:2] + cubes.shape[3:])
            cubes = cubes.masked_fill(along(masked, cubes) & black[:, :, None], 0.0)
        moved = images.clone()
        moved[:, :, :depth, :height, :width] = together(cubes)
        return moved

    def label(self, draws: Draws) -> Tensor:
        """Return permutation, turns and masks in one number, (B,) int64; see `read`."""
        number, turned, masked = self._moves(draws)
        return (number << 2 * CUBES) | (bits(turned) << CUBES) | bits(masked)

    def _moves(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Return the permutation's number, (B,), and which cubes are turned and masked, (B, 8)."""
        number = draws.integers("order", 0, len(self.orders))
        turned = draws.bernoulli("turned", self.options.turned, (CUBES,))
        return number, turned, draws.bernoulli("masked", self.options.masked, (CUBES,))


def apart(volumes: Tensor) -> Tensor:
    """Cut volumes (B, C, D, H, W) with even sides into cubes, (B, 8, C, D / 2, H / 2, W / 2)."""
    for axis in (2, 4, 6):
        volumes = volumes.unflatten(axis, (SIDE, -1))  # type: ignore[no-untyped-call]
    return volumes.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(1, 3)


def together(cubes: Tensor) -> Tensor:
    """Put cubes together again: the inverse of `apart`."""
    parts = cubes.unflatten(1, (SIDE, SIDE, SIDE))  # type: ignore[no-untyped-call]
    joined: Tensor = parts.permute(0, 4, 1, 5, 2, 6, 3, 7)
    for axis in (2, 3, 4):
        joined = joined.flatten(axis, axis + 1)
    return joined


def along(values: Tensor, cubes: Tensor) -> Tensor:
    """Return one value a cube, (B, 8), in a shape that broadcasts against cubes."""
    return values.view(*values.shape, *[1] * (cubes.dim() - 2))


def bits(flags: Tensor) -> Tensor:
    """Return flags (B, 8) as a number, the first one lowest, (B,) int64."""
    return (flags.long() << torch.arange(CUBES, device=flags.device)).sum(1)


def read(label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a label says: the permutation's number (B,), turned and masked cubes (B, 8)."""
    place = torch.arange(CUBES, device=label.device)
    masked = (label[:, None] >> place & 1).bool()
    turned = (label[:, None] >> place + CUBES & 1).bool()
    return label >> 2 * CUBES, turned, masked


@cache
def permutations(n: int) -> Tensor:
    """Return n permutations of eight that differ much, (n, 8) int64, the identity first.

    Each is the first, in lexical order, of those farthest (Hamming) from the nearest one before.
    """
    every = torch.tensor([*itertools.permutations(range(CUBES))], dtype=torch.int8).T.contiguous()
    chosen, nearest = [0], torch.full(every.shape[1:], CUBES + 1, dtype=torch.int8)
    for _ in range(n - 1):
        differ = (every != every[:, chosen[-1], None]).sum(0, dtype=torch.int8)
        nearest = torch.minimum(nearest, differ)
        chosen.append(int(nearest.argmax()))
    return every[:, chosen].T.long()
