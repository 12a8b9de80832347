"""What a critic and its opponent play for (the paper's eq. 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dira_core.draws import Draws
from dira_core.losses.arguments import in_float32


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


@in_float32
def wgan_critic(real: Tensor, fake: Tensor) -> Tensor:
    """Raise scores of real images and lower those of restored ones: E D(x') - E D(x).

    Source: Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017,
    arXiv:1704.00028, eq. 3 without its penalty.
    """
    return fake.mean() - real.mean()


@in_float32
def wgan_generator(fake: Tensor) -> Tensor:
    """Raise the scores of restored images: -E D(x')."""
    return -fake.mean()


@in_float32
def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """Pull the critic's slope to 1 between real and restored images: E (|dD/dx| - 1)^2.

    Source: Gulrajani et al., eq. 3. The points are uniform on the lines from each real image to the
    restored one. Where on a line is a function of the real image's bits, so it does not depend on
    the batch or the process, nor on when a run was resumed.

    Args:
        critic: Scores images, (B, C, *S) -> (B, 1, *S'); an image's score is the mean of its own.
        real: (B, C, *S).
        fake: (B, C, *S).

    Returns:
        Scalar in float32, with a graph to the critic's parameters.
    """
    bits = real.float().contiguous().view(torch.int32).flatten(1).sum(1, dtype=torch.int64)
    share = Draws(bits, seed=0, path="gradient penalty").uniform("share")
    kind = torch.promote_types(real.dtype, fake.dtype)
    share = share.to(kind).view(-1, *[1] * (real.dim() - 1))
    point = torch.lerp(real.to(kind), fake.to(kind), share).detach()
    point.requires_grad_()
    score = critic(point).flatten(1).mean(1).sum()
    (slope,) = torch.autograd.grad(score, point, create_graph=True)
    lengths: Tensor = torch.linalg.vector_norm(slope.flatten(1), dim=1)
    return (lengths - 1).square().mean()
