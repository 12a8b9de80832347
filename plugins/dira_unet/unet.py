"""The U-Net Restorer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dira_core import (
    Backbone,
    Pyramid,
    RecipeError,
    Restorer,
    View,
    conv,
    doubling_conv,
    in_float32,
    mean_absolute,
    mean_squared,
    upsample,
)
from dira_unet import UNetOptions
from dira_unet.layers import conv_norm_relu

WIDEST, NARROWEST = 256, 16
SMALLEST_CHANGE = 1e-6
"""Pixels that differ by no more were not distorted; images are in [0, 1]."""

_LOSSES = {"mse": mean_squared, "l1": mean_absolute}


class Repeat(nn.Module):
    """Bring maps to a size by repeating the nearest pixel."""

    def forward(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        return upsample(maps, size)


class Transpose(nn.Module):
    """Double maps by a transposed convolution that keeps their channels; surplus is cut off."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = doubling_conv(dims, channels)

    def forward(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        doubled: Tensor = self.conv(maps)
        return doubled[(slice(None), slice(None), *(slice(side) for side in size))]


class Block(nn.Module):
    """Upsample, append the skip, convolve twice (3x3, norm, ReLU).

    Args:
        up: Brings maps to a size.
        conv1: Takes maps and skip.
        conv2: Takes what the first made.
    """

    def __init__(self, up: nn.Module, conv1: nn.Module, conv2: nn.Module) -> None:
        super().__init__()
        self.up, self.conv1, self.conv2 = up, conv1, conv2

    def forward(self, maps: Tensor, skip: Tensor | None) -> Tensor:
        """Return (B, outputs, *S) with the size of the skip, or twice that of `maps`."""
        if skip is None:
            maps = self.up(maps, [2 * side for side in maps.shape[2:]])
        else:
            maps = torch.cat([self.up(maps, skip.shape[2:]), skip], dim=1)
        out: Tensor = self.conv2(self.conv1(maps))
        return out


class UNet(Restorer):
    """Decode a pyramid into the undistorted crop.

    One block for each map of the pyramid but the deepest, then blocks without a skip up to the
    image's size. Parameters are named as in the decoder of segmentation_models_pytorch
    (`blocks.0.conv1.0.weight`), so that weights travel both ways; `head` is its
    `segmentation_head.0`.

    Source: Ronneberger et al., "U-Net", MICCAI 2015, arXiv:1505.04597, in the form of the paper's
    public code. L_res is eq. 2 of the paper.

    Args:
        options: Widths, norm, way up, distance, region.
        backbone: Gives the pyramid; its first stride is a power of two.

    Raises:
        RecipeError: There are more or fewer widths than blocks.
    """

    def __init__(self, options: UNetOptions, backbone: Backbone) -> None:
        super().__init__()
        dims, (*shallow, deepest) = backbone.dims, backbone.channels
        skips = [*reversed(shallow), *[0] * (backbone.strides[0].bit_length() - 1)]
        widths = _widths(options.widths, len(skips))
        channels = (deepest, *widths)
        self.blocks = nn.ModuleList(
            _block(options, dims, below, skip, width)
            for (below, width), skip in zip(pairwise(channels), skips, strict=True)
        )
        self.head = conv(dims, channels[-1], backbone.in_channels, kernel=options.head)
        nn.init.xavier_uniform_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        self.n_restored = options.n_restored
        self._distance = _LOSSES[options.loss]
        self._only_distorted = options.region == "distorted"

    def forward(self, pyramid: Pyramid) -> Tensor:
        """Return the restored crop in float32.

        Where a side of the crop is no multiple of the first stride, the pyramid does not tell it:
        the result is then up to one stride larger, at the far edge.
        """
        *skips, maps = pyramid
        for block in self.blocks:
            maps = block(maps, skips.pop() if skips else None)
        return _sigmoid(self.head(maps))

    def segments(self) -> list[nn.Module]:
        """Return the blocks of the decoder."""
        return [*self.blocks]

    def distance(self, restored: Tensor, view: View) -> Tensor:
        """Return L_res over the crop; what `restored` has beyond its far edge does not count."""
        within = restored[tuple(slice(side) for side in view.crop.shape)]
        return self._distance(within, view.crop, distorted(view) if self._only_distorted else None)


def distorted(view: View) -> Tensor:
    """Return the pixels that the distortions changed in any channel, boolean, (B, 1, *S)."""
    return (view.image - view.clean).abs().amax(1, keepdim=True) > SMALLEST_CHANGE


_sigmoid = in_float32(torch.sigmoid)


def _block(options: UNetOptions, dims: int, below: int, skip: int, width: int) -> Block:
    up = Repeat() if options.up == "nearest" else Transpose(dims, below)
    return Block(
        up,
        conv_norm_relu(dims, below + skip, width, options.norm),
        conv_norm_relu(dims, width, width, options.norm),
    )


def _widths(given: Sequence[int] | None, blocks: int) -> Sequence[int]:
    if given is None:
        return [max(NARROWEST, WIDEST >> block) for block in range(blocks)]
    if len(given) != blocks:
        raise RecipeError(
            f"unet has {blocks} blocks on this backbone, got {len(given)} widths: "
            f"give restorer.widths {blocks} numbers, or leave it out"
        )
    return given
