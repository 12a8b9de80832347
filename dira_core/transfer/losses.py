"""What fine-tuning minimises: pure functions of predictions, truth, and where it is known."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def one_of_several(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Return the cross-entropy over images whose class is known.

    Args:
        logits: (B, K).
        truth: (B, K), a 1 in each row.
        known: (B, K) of 0 and 1.

    Returns:
        Scalar in float32; 0 where no class is known.
    """
    rows = known.amin(1)
    each = F.cross_entropy(logits.float(), truth.argmax(1), reduction="none")
    return (each * rows).sum() / rows.sum().clamp(min=1)


def any_of_several(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Return the binary cross-entropy averaged over known labels; shapes as `one_of_several`."""
    each = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def soft_dice(probability: Tensor, truth: Tensor, known: Tensor, smooth: float = 1.0) -> Tensor:
    """Return 1 - Dice of probabilities, pixels of the whole batch together, averaged over classes.

    Source: Milletari et al., "V-Net", 3DV 2016, arXiv:1606.04797, with sums instead of squares and
    `smooth` in numerator and denominator, as the public code behind the paper has it.

    Args:
        probability: (B, K, *S).
        truth: (B, K, *S) of 0 and 1.
        known: (B, 1, *S) of 0 and 1; other pixels do not count.
        smooth: Makes empty masks learnable.

    Returns:
        Scalar in float32.
    """
    p, t = (each.float() * known for each in (probability, truth))
    axes = [0, *range(2, p.dim())]
    both, total = (p * t).sum(axes), p.sum(axes) + t.sum(axes)
    loss: Tensor = 1 - ((2 * both + smooth) / (total + smooth)).mean()
    return torch.as_tensor(loss)
