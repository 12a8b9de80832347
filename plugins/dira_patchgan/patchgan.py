"""The PatchGAN Adversary."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dira_core import (
    Adversary,
    RecipeError,
    bce_critic,
    bce_generator,
    conv,
    gradient_penalty,
    hinge_critic,
    hinge_generator,
    instance_norm,
    lsgan_critic,
    lsgan_generator,
    minimax_generator,
    wgan_critic,
    wgan_generator,
)
from dira_patchgan import PatchGANOptions

SLOPE = 0.2
"""Of the leaky ReLU."""

_LOSSES = {
    "lsgan": (lsgan_critic, lsgan_generator),
    "bce": (bce_critic, bce_generator),
    "minimax": (bce_critic, minimax_generator),
    "hinge": (hinge_critic, hinge_generator),
    "wgan-gp": (wgan_critic, wgan_generator),
}


class PatchGAN(Adversary):
    """Score the patches of an image: (B, C, *S) -> (B, 1, *ceil(S / 8)) with the default widths.

    Blocks of a 3x3 convolution, instance norm (not in the first) and leaky ReLU halve the image,
    all but the last; one more convolution gives the scores, which are not squashed. Convolutions
    start from N(0, 0.02) with torch's own biases.

    Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks",
    CVPR 2017, arXiv:1611.07004, with the sizes of the paper's public code; L_adv is eq. 3 of the
    paper with `loss="minimax"`.

    Args:
        options: Widths, loss, conditional or not.
        channels: Channels of one image.
        dims: Number of spatial axes.
    """

    def __init__(self, options: PatchGANOptions, channels: int, dims: int) -> None:
        super().__init__()
        widths = (channels * (1 + options.conditional), *options.widths)
        last = len(options.widths)
        self.convs = nn.ModuleList(
            conv(dims, *pair, stride=1 if block == last else 2)
            for block, pair in enumerate(pairwise(widths), start=1)
        )
        self.head = conv(dims, widths[-1], 1)
        for weight in (p for p in self.parameters() if p.dim() > 1):
            nn.init.normal_(weight, std=0.02)
        self.conditional = options.conditional
        self._penalty = options.penalty if options.loss == "wgan-gp" else 0.0
        self._critic_loss, self._generator_loss = _LOSSES[options.loss]

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        self._check_size(image)
        if self.conditional:
            assert condition is not None
            image = torch.cat([image, condition], dim=1)
        maps = image
        for block, layer in enumerate(self.convs):
            maps = layer(maps)
            maps = F.leaky_relu(instance_norm(maps) if block else maps, SLOPE)
        scores: Tensor = self.head(maps)
        return scores

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return self._critic_loss(real, fake)

    def generator_loss(self, fake: Tensor) -> Tensor:
        return self._generator_loss(fake)

    def penalty(self, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor | None:
        if not self._penalty:
            return None
        slopes = gradient_penalty(lambda between: self(between, condition), real, fake)
        return self._penalty * slopes

    def _check_size(self, image: Tensor) -> None:
        smallest = 2 ** (len(self.convs) - 1) + 1
        size = tuple(image.shape[2:])
        if max(size) < smallest:  # instance norm would leave nothing of a single pixel
            raise RecipeError(
                f"patchgan needs a side of at least {smallest} px, got {size}: "
                "raise views.size, or give adversary.widths fewer numbers"
            )
