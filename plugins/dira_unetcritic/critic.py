"""The U-Net-encoder Adversary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dira_core import (
    Adversary,
    RecipeError,
    batch_norm,
    conv,
    gradient_penalty,
    instance_norm,
    wgan_critic,
    wgan_generator,
)
from dira_unetcritic import UNetCriticOptions

_MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}


class UNetCritic(Adversary):
    """Score the parts of an image: (B, C, *S) -> (B, 1, *ceil(S / 8)) with four levels.

    Level d has a convolution to width 2^d channels and one to twice as many, each with its norm and
    ReLU; max-pools halve between levels, rounding up; a 1x1 convolution gives the scores.

    Source: the critic of Stepwise Pretraining's public code, the only public adversary in 3-D of
    DiRA's authors; losses: Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017,
    arXiv:1704.00028, eq. 3. The score of an image is the mean of its parts'.

    Args:
        options: Width, levels, norm, weight of the penalty, conditional or not.
        channels: Channels of one image.
        dims: Number of spatial axes.
    """

    def __init__(self, options: UNetCriticOptions, channels: int, dims: int) -> None:
        super().__init__()
        self.options, self.conditional = options, options.conditional
        inputs = channels * (1 + options.conditional)
        self.levels = nn.ModuleList()
        for level in range(options.levels):
            width = options.width << level
            pair = (
                _layer(dims, inputs, width, options.norm),
                _layer(dims, width, 2 * width, options.norm),
            )
            self.levels.append(nn.Sequential(*pair))
            inputs = 2 * width
        self.head = conv(dims, inputs, 1, kernel=1)
        self._pool = _MAX_POOL[dims]

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        self._check_size(image)
        if self.conditional:
            assert condition is not None
            image = torch.cat([image, condition], dim=1)
        maps = self.levels[0](image)
        for level in self.levels[1:]:
            maps = level(self._pool(maps, 2, ceil_mode=True))
        scores: Tensor = self.head(maps)
        return scores

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return wgan_critic(real, fake)

    def generator_loss(self, fake: Tensor) -> Tensor:
        return wgan_generator(fake)

    def penalty(self, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor | None:
        if not self.options.penalty:
            return None
        return self.options.penalty * gradient_penalty(
            lambda between: self(between, condition), real, fake
        )

    def _check_size(self, image: Tensor) -> None:
        smallest = 2 ** (self.options.levels - 1) + 1
        if self.options.norm == "instance" and max(image.shape[2:]) < smallest:
            raise RecipeError(
                f"unet-critic needs a side of at least {smallest} px, got {(*image.shape[2:],)}: "
                "raise views.size, or give adversary.levels a smaller number"
            )


class InstanceNorm(nn.Module):
    """Give every channel of every image mean 0 and variance 1 over space."""

    def forward(self, maps: Tensor) -> Tensor:
        return instance_norm(maps)


def _layer(dims: int, inputs: int, outputs: int, norm: str) -> nn.Sequential:
    """Return a 3x3 convolution, a norm and a ReLU."""
    layer = conv(dims, inputs, outputs, bias=norm == "none")
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if norm == "none":
        return nn.Sequential(layer, nn.ReLU())
    normed = InstanceNorm() if norm == "instance" else batch_norm(dims, outputs)
    return nn.Sequential(layer, normed, nn.ReLU())
