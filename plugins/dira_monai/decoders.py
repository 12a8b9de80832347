"""Decoders of MONAI's networks as Restorers, on the pyramid of any backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dira_core import (
    Backbone,
    Pyramid,
    Restorer,
    View,
    conv,
    in_float32,
    mean_absolute,
    mean_squared,
    upsample,
)
from dira_monai import DecoderOptions, UNetDecoderOptions
from dira_monai.library import NORMS, monai

LOSSES = {"mse": mean_squared, "l1": mean_absolute}

sigmoid = in_float32(torch.sigmoid)

MakeBlock = Callable[[DecoderOptions, int, int, int, int], nn.Module]
"""Makes what brings maps to a skip's size: options, dims, channels in and out, factor."""


def cropped(maps: Tensor, sides: Sequence[int]) -> Tensor:
    """Cut off what maps have beyond `sides`: a stride of 2 on an odd side rounds up."""
    return maps[(slice(None), slice(None), *(slice(side) for side in sides))]


def distance(options: DecoderOptions, restored: Tensor, view: View) -> Tensor:
    """Return L_res over the crop; what `restored` has beyond its far edge does not count."""
    return LOSSES[options.loss](cropped(restored, view.crop.shape[2:]), view.crop, None)


class SkipDecoder(Restorer):
    """Decode a pyramid by blocks that upsample, append the map above, and convolve.

    On the encoder of the same name it is MONAI's, number for number. Where a backbone's first map
    has a stride, the last maps are repeated up to the size of the image.

    Args:
        options: Norm, distance.
        backbone: Gives the pyramid.
        make: Makes a block of MONAI.
    """

    def __init__(self, options: DecoderOptions, backbone: Backbone, make: MakeBlock) -> None:
        super().__init__()
        self.options, self.n_restored = options, options.n_restored
        self._stride = backbone.strides[0]
        levels = zip(pairwise(backbone.channels), pairwise(backbone.strides), strict=True)
        self.ups = nn.ModuleList(
            Up(make(options, backbone.dims, below, skip, stride // finer))
            for (skip, below), (finer, stride) in reversed([*levels])
        )
        self.head = conv(backbone.dims, backbone.channels[0], backbone.in_channels, kernel=1)

    def forward(self, pyramid: Pyramid) -> Tensor:
        *skips, maps = pyramid
        for up in self.ups:
            maps = up(maps, skips.pop())
        maps = upsample(maps, [self._stride * side for side in maps.shape[2:]])
        return sigmoid(self.head(maps))

    def segments(self) -> list[nn.Module]:
        """Return the blocks."""
        return [*self.ups]

    def distance(self, restored: Tensor, view: View) -> Tensor:
        return distance(self.options, restored, view)


class Up(nn.Module):
    """Call a block of MONAI, which takes even sides, on any.

    Args:
        block: Has a transposed convolution and a block of convolutions.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, maps: Tensor, skip: Tensor) -> Tensor:
        """Return (B, C, *S) of the skip's shape."""
        doubled = cropped(self.block.transp_conv(maps), skip.shape[2:])
        joined: Tensor = self.block.conv_block(torch.cat([doubled, skip], 1))
        return joined


def dynunet_block(
    options: DecoderOptions, dims: int, inputs: int, outputs: int, factor: int
) -> nn.Module:
    """Return DynUNet's block: a transposed convolution and two plain ones."""
    block: nn.Module = monai("networks.blocks.dynunet_block").UnetUpBlock(
        dims, inputs, outputs, 3, factor, factor, NORMS[options.norm]
    )
    return block.apply(monai("networks.nets").DynUNet.initialize_weights)


def swin_block(
    options: DecoderOptions, dims: int, inputs: int, outputs: int, factor: int
) -> nn.Module:
    """Return Swin UNETR's block: a transposed convolution and a residual block."""
    block: nn.Module = monai("networks.blocks").UnetrUpBlock(
        dims, inputs, outputs, 3, factor, options.norm, res_block=True
    )
    return block


class UNetDecoder(Restorer):
    """Decode a pyramid by transposed convolutions of each map along with what came from below.

    On the encoder of the same name it is MONAI's, number for number.

    Args:
        options: Norm, residual units, distance.
        backbone: Gives the pyramid.
    """

    def __init__(self, options: UNetDecoderOptions, backbone: Backbone) -> None:
        super().__init__()
        self.options, self.n_restored = options, options.n_restored
        skips = [*reversed(backbone.channels)]
        outputs = [*skips[1:], backbone.in_channels]
        factors = [stride // finer for finer, stride in pairwise((1, *backbone.strides))][::-1]
        self.ups, came = nn.ModuleList(), 0
        for skip, out, factor in zip(skips, outputs, factors, strict=True):
            if not came and factor == 1:  # the deepest map of MONAI's has the sides of the next
                self.ups.append(nn.Identity())
                came = skip
                continue
            top = len(self.ups) == len(skips) - 1
            self.ups.append(up_layer(options, backbone.dims, (came + skip, out), factor, top))
            came = out

    def forward(self, pyramid: Pyramid) -> Tensor:
        deepest, *skips = reversed(pyramid)
        first, *ups = self.ups
        maps = first(deepest)
        for up, skip in zip(ups, skips, strict=True):
            maps = up(torch.cat([skip, cropped(maps, skip.shape[2:])], 1))
        return sigmoid(maps)

    def segments(self) -> list[nn.Module]:
        """Return the layers."""
        return [*self.ups]

    def distance(self, restored: Tensor, view: View) -> Tensor:
        return distance(self.options, restored, view)


def up_layer(
    options: UNetDecoderOptions, dims: int, channels: tuple[int, int], factor: int, top: bool
) -> nn.Module:
    """Return a transposed convolution and, if asked, a residual unit; the last has no norm."""
    blocks = monai("networks.blocks")
    same = {"act": "PRELU", "norm": options.norm, "adn_ordering": "NDA"}
    layer: nn.Module = blocks.Convolution(
        dims,
        *channels,
        strides=factor,
        kernel_size=3,
        conv_only=top and options.units == 0,
        is_transposed=True,
        **same,
    )
    if options.units == 0:
        return layer
    unit = blocks.ResidualUnit(
        dims,
        channels[1],
        channels[1],
        strides=1,
        kernel_size=3,
        subunits=1,
        last_conv_only=top,
        **same,
    )
    return nn.Sequential(layer, unit)
