"""Attraction without negatives: SimSiam and BYOL."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dira_core.losses.arguments import in_float32

SMALLEST_NORM = 1e-4
"""Shorter vectors are not stretched to length 1, which bounds the gradient by the inverse."""


@in_float32
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Pull predictions towards embeddings: minus the mean cosine of their angle.

    Source: Chen & He, "Exploring Simple Siamese Representation Learning", CVPR 2021,
    arXiv:2011.10566, eq. 1. Stopping the gradient (eq. 3) is the caller's: pass `z.detach()`.

    A vector shorter than 1e-4 (a collapsed network) is divided by 1e-4 instead of by its length:
    a zero vector counts as orthogonal to everything, and its gradient is finite.

    Args:
        p: Predictions, (B, D).
        z: Embeddings of the other view, (B, D).

    Returns:
        Scalar in [-1, 1], in float32.
    """
    p, z = F.normalize(p, eps=SMALLEST_NORM), F.normalize(z, eps=SMALLEST_NORM)
    return -(p * z).sum(-1).mean()
