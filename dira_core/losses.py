"""Losses as pure functions of tensors: scalars in float32, computed outside autocast."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

P = ParamSpec("P")
R = TypeVar("R")

SMALLEST_NORM = 1e-4
"""Shorter vectors are not stretched to length 1, which bounds the gradient by the inverse."""


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function of tensors outside autocast, on arguments raised to float32.

    float64 arguments stay float64, for checks by finite differences. Inside autocast a product
    such as `a.T @ b` would silently become bfloat16.
    """

    call: Callable[..., R] = function

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        given = {name: _raised(value) for name, value in kwargs.items()}
        device = next(a.device for a in (*args, *given.values()) if isinstance(a, Tensor))
        with torch.autocast(device.type, enabled=False):
            return call(*map(_raised, args), **given)

    return wrapped


def _raised(argument: object) -> object:
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return argument.to(torch.promote_types(argument.dtype, torch.float32))
    return argument


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


@in_float32
def mean_squared(restored: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average the squared error over all pixels, or over those of a mask (L2, paper, eq. 2).

    Args:
        restored: (B, C, *S).
        target: (B, C, *S).
        mask: Boolean, (B, 1 or C, *S); where it is empty the loss is 0 and so is its gradient.

    Returns:
        Scalar in float32.

    Raises:
        ValueError: `restored` and `target` differ in shape.
    """
    _same_shape(restored, target)
    return _mean((restored - target).square(), mask)


@in_float32
def mean_absolute(restored: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average the absolute error over all pixels, or over those of a mask (L1, paper, eq. 2).

    Arguments, result and errors are those of `mean_squared`.
    """
    _same_shape(restored, target)
    return _mean((restored - target).abs(), mask)


def _same_shape(restored: Tensor, target: Tensor) -> None:
    if restored.shape != target.shape:  # else it would broadcast, in silence
        raise ValueError(
            f"restored and target must have one shape, got {(*restored.shape,)} "
            f"and {(*target.shape,)}"
        )


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean()
    mask = mask.expand_as(values)
    return (values * mask).sum() / mask.sum().clamp_min(1)


@in_float32
def lsgan_critic(real: Tensor, fake: Tensor) -> Tensor:
    """Pull scores of real images to 1 and of restored ones to 0, by half the squared distance.

    Source: Mao et al., "Least Squares Generative Adversarial Networks", ICCV 2017,
    arXiv:1611.04076, eq. 2 with a = 0, b = c = 1.
    """
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


@in_float32
def lsgan_generator(fake: Tensor) -> Tensor:
    """Pull scores of restored images to 1, by the squared distance (twice eq. 2 of Mao et al.)."""
    return (fake - 1).square().mean()


@in_float32
def bce_critic(real: Tensor, fake: Tensor) -> Tensor:
    """Tell real from restored images: minus (E log D(x) + E log(1 - D(x'))).

    Source: the paper, eq. 3, and Goodfellow et al., NeurIPS 2014, arXiv:1406.2661, eq. 1.
    D is the sigmoid of a score.
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


@in_float32
def bce_generator(fake: Tensor) -> Tensor:
    """Make restored images pass for real: -E log D(x'), which does not saturate.

    Source: Goodfellow et al., section 3: the fixed point of `minimax_generator`, with a gradient
    where the critic is sure.
    """
    return F.softplus(-fake).mean()


@in_float32
def minimax_generator(fake: Tensor) -> Tensor:
    """Make restored images not pass for restored: E log(1 - D(x')), eq. 3 as the paper has it.

    Its gradient vanishes where the critic is sure.
    """
    return -F.softplus(fake).mean()


@in_float32
def hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """Push scores of real images above 1 and of restored ones below -1, and no further.

    Source: Miyato et al., "Spectral Normalization for GANs", ICLR 2018, arXiv:1802.05957, eq. 16.
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


@in_float32
def hinge_generator(fake: Tensor) -> Tensor:
    """Raise the scores of restored images: -E D(x') (Miyato et al., eq. 17)."""
    return -fake.mean()
