"""How far a restored image is from its target (the paper's eq. 2)."""

from __future__ import annotations

from torch import Tensor

from dira_core.losses.arguments import in_float32, same_shape


@in_float32
def mean_squared(restored: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average the squared error over all pixels, or over those of a mask (L2, paper, eq. 2).

    Masked pixels are averaged image by image, so that parts of a batch average to the whole.

    Args:
        restored: (B, C, *S).
        target: (B, C, *S).
        mask: Boolean, (B, 1 or C, *S); an image whose mask is empty counts as 0.

    Returns:
        Scalar in float32.

    Raises:
        ValueError: `restored` and `target` differ in shape.
    """
    same_shape(restored, target, "restored and target")
    return _mean((restored - target).square(), mask)


@in_float32
def mean_absolute(restored: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average the absolute error over all pixels, or over those of a mask (L1, paper, eq. 2).

    Arguments, result and errors are those of `mean_squared`.
    """
    same_shape(restored, target, "restored and target")
    return _mean((restored - target).abs(), mask)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean()
    mask, axes = mask.expand_as(values), [*range(1, values.dim())]
    return ((values * mask).sum(axes) / mask.sum(axes).clamp_min(1)).mean()
