"""K-means, and the whitening that comes before it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DISTANCES_AT_ONCE = 2**24
"""Distances between points and centres held in memory, at most."""

LEAST_VARIANCE = 1e-5
"""Directions with a smaller part of the largest variance are noise; whitening would blow it up."""


def pca_whiten(features: Tensor, dim: int) -> Tensor:
    """Project on the first principal axes, give each variance 1, and normalise the rows.

    Source: what Caron et al., "Deep Clustering", ECCV 2018, arXiv:1807.05520, do before k-means.

    Args:
        features: (N, D).
        dim: Axes kept, at most; those of next to no variance are left out.

    Returns:
        Unit vectors, (N, dim or less).
    """
    centred = features - features.mean(0)
    variance, axes = torch.linalg.eigh((centred.T @ centred).double() / len(features))
    kept = min(dim, int((variance > LEAST_VARIANCE * variance[-1]).sum()))
    first = slice(len(variance) - kept, None)  # eigh sorts them upwards
    return F.normalize(centred @ (axes[:, first] / variance[first].sqrt()).to(centred.dtype))


def kmeans(points: Tensor, k: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Partition points into clusters by Lloyd's algorithm from centres that lie apart.

    Source: Lloyd, "Least Squares Quantization in PCM", IEEE Trans. Inf. Theory 28, 1982. The first
    centres are drawn as by k-means++; an empty cluster restarts from one of the points farthest
    from their centres.

    Args:
        points: (N, D).
        k: Number of clusters; fewer come out where fewer points differ.
        iterations: Of assignment and update.
        generator: On the CPU; draws the first centres.

    Returns:
        The cluster of each point, (N,) int64.
    """
    centres = points[first_centres(points, k, generator)]
    for _ in range(iterations):
        label, distance = nearest(points, centres)
        size = torch.bincount(label, minlength=k)
        centres = torch.zeros_like(centres).index_add_(0, label, points)
        centres /= size.clamp(min=1)[:, None]
        empty = (size == 0).nonzero().squeeze(1)
        centres[empty] = points[distance.topk(len(empty)).indices]
    return nearest(points, centres)[0]


def first_centres(points: Tensor, k: int, generator: torch.Generator) -> list[int]:
    """Draw k points, each with probability proportional to its squared distance from those before.

    Source: Arthur & Vassilvitskii, "k-means++", SODA 2007, section 2.2.
    """
    squared = points.square().sum(1)
    distance = torch.full_like(squared, torch.inf)
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    for part in torch.rand(k - 1, generator=generator, dtype=torch.float64):
        last = chosen[-1]
        apart = squared + squared[last] - 2 * (points @ points[last])
        distance = torch.minimum(distance, apart.clamp_(min=0))
        edges = distance.cpu().double().cumsum(0)  # a sum on the GPU may differ from run to run
        drawn = int(torch.searchsorted(edges, part * edges[-1], right=True))
        chosen.append(min(drawn, len(points) - 1))
    return chosen


def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centre of each point and its squared distance: (N,) int64 and (N,)."""
    half = centres.square().sum(1) / 2
    pieces = torch.split(points, max(1, DISTANCES_AT_ONCE // len(centres)))
    found = [torch.min(half - piece @ centres.T, 1) for piece in pieces]
    value, label = (torch.cat([pair[i] for pair in found]) for i in range(2))
    return label, (2 * value + points.square().sum(1)).clamp_(min=0)
