"""What a critic and its opponent play for (the paper's eq. 3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

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
