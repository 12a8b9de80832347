"""Decorrelated dimensions that agree across views: Barlow Twins."""

from __future__ import annotations

from torch import Tensor

from dira_core.losses.arguments import in_float32, same_shape
from dira_core.losses.closed_form import with_gradients

EPS = 1e-5
"""Added to variances, as batch norm does."""


@in_float32
def barlow_twins(z1: Tensor, z2: Tensor, lambd: float) -> Tensor:
    """Decorrelate the dimensions of two embeddings and match them across views.

    Source: Zbontar et al., "Barlow Twins", ICML 2021, arXiv:2103.03230, eq. 1: with columns
    normalised over the batch and C = z1' z2 / N, the sum of (1 - C_ii)^2 and lambd C_ij^2, i != j.

    The (D, D) matrix C is never made when N <= D / 2: ||z1' z2||^2 = <z1 z1', z2 z2'> takes (N, N)
    matrices instead. There ||C||^2 is at least (trace C)^2 / N, so that the diagonal can be
    subtracted without loss of digits. The gradient is computed with the value, in closed form.

    Args:
        z1: Embeddings of the first view, (N, D); over all processes, or it is another loss.
        z2: Embeddings of the second view, (N, D).
        lambd: Weight of the off-diagonal terms.

    Returns:
        Scalar in float32.

    Raises:
        ValueError: The shapes differ, or N is 1.
    """
    same_shape(z1, z2, "z1 and z2")
    if len(z1) < 2:
        raise ValueError("barlow_twins normalises over the batch, which needs two images, got 1")
    value, *gradients = _barlow_twins(z1.detach(), z2.detach(), lambd)
    return with_gradients(value, (z1, z2), *gradients)


def _barlow_twins(z1: Tensor, z2: Tensor, lambd: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its gradients with respect to both embeddings."""
    (a, stretch_a), (b, stretch_b) = _normalised(z1), _normalised(z2)
    # 1 - C_ii by way of differences, since the mean of a^2 is 1 - EPS * stretch^2: no digit is lost
    # where views agree
    gap = ((a - b).square_().mean(0) + EPS * (stretch_a.square() + stretch_b.square())) / 2
    redundancy, pull_a, pull_b = _off_diagonal(a, b, 1 - gap)
    value = gap.square().sum() + lambd * redundancy
    # in place: five matrices of the embeddings' size are all there ever is
    pull_a.mul_(lambd).addcmul_(b, gap, value=-1)
    pull_b.mul_(lambd).addcmul_(a, gap, value=-1)
    scale = 2 / len(a)
    return (
        value,
        _through_norm(pull_a, a, scale * stretch_a),
        _through_norm(pull_b, b, scale * stretch_b),
    )


def _normalised(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return columns of mean 0 and variance 1, and what they were stretched by, (D,)."""
    centred = z - z.mean(0)
    stretch = (centred.square().mean(0) + EPS).rsqrt()
    return centred.mul_(stretch), stretch


def _off_diagonal(a: Tensor, b: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum of C_ij^2, i != j, and N / 2 times its gradients with respect to a and b.

    Args:
        a: Normalised columns, (N, D).
        b: Normalised columns, (N, D).
        diagonal: That of C = a' b / N, (D,).
    """
    n, dim = a.shape
    if 2 * n > dim:
        c = (a.T @ b).div_(n).fill_diagonal_(0)
        return c.square().sum(), b @ c.T, a @ c
    left, right = (a @ a.T).div_(n), (b @ b.T).div_(n)
    return (
        (left * right).sum() - diagonal.square().sum(),
        (right @ a).addcmul_(b, diagonal, value=-1),
        (left @ b).addcmul_(a, diagonal, value=-1),
    )


def _through_norm(gradient: Tensor, normalised: Tensor, stretch: Tensor) -> Tensor:
    """Turn the gradient of normalised columns into that of the columns, times `stretch`, in place.

    A column's gradient has no mean here to take away: it is made of columns without one.
    """
    along = (gradient * normalised).mean(0)
    return gradient.addcmul_(normalised, along, value=-1).mul_(stretch)
