"""Encoders of MONAI's networks as backbones: its own modules, in its own order.

MONAI builds the whole network, and what belongs to the encoder is taken out of it, so that layers,
initial weights and numbers are its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dira_core import Backbone, RecipeError
from dira_monai import DynUNetOptions, NormOptions, SwinOptions, UNetOptions
from dira_monai.library import dynunet, swin, unet


def doubling(maps: int, first: int = 1) -> tuple[int, ...]:
    """Return strides of so many maps, each twice that of the one before."""
    return tuple(first << level for level in range(maps))


def check_sides(images: Tensor, backbone: Backbone, options: NormOptions) -> None:
    """Refuse images of whose deepest map an instance norm would leave nothing.

    Raises:
        RecipeError: That map is one voxel large.
    """
    sides, stride = images.shape[2:], max(backbone.strides)
    if options.norm == "instance" and max(sides) <= stride:
        raise RecipeError(
            f"an instance norm needs more than one voxel, and the deepest map has a stride of "
            f"{stride}: got views of {(*sides,)}, set views.size to more than {stride} along an "
            "axis, or backbone.norm=batch"
        )


class Levels(Backbone):
    """Encode images by levels, each on what the one before made.

    Args:
        levels: Modules of MONAI, shallow to deep.
        options: Widths of the levels, norm.
        strides: Of the levels' maps.
        channels: Channels of an image.
        dims: Number of spatial axes.
    """

    def __init__(
        self,
        levels: Sequence[nn.Module],
        options: UNetOptions | DynUNetOptions,
        strides: tuple[int, ...],
        channels: int,
        dims: int,
    ) -> None:
        super().__init__()
        self.options, self.in_channels, self.dims = options, channels, dims
        self.channels, self.strides = options.widths, strides
        self.levels = nn.ModuleList(levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        check_sides(images, self, self.options)
        pyramid, maps = [], images
        for level in self.levels:
            maps = level(maps)
            pyramid.append(maps)
        return pyramid

    def segments(self) -> list[nn.Module]:
        """Return the levels."""
        return [*self.levels]


def unet_encoder(options: UNetOptions, channels: int, dims: int) -> Levels:
    """Return the way down of MONAI's `UNet`.

    Source: Kerfoot et al., "Left-Ventricle Quantification Using Residual U-Net", STACOM 2018.
    """
    halved = len(options.widths) - 1
    levels, below = [], unet(options, dims, channels, channels).network().model
    for _ in range(halved):
        levels.append(below[0])
        below = below[1].submodule
    strides = (*doubling(halved, 2), 1 << halved)
    return Levels([*levels, below], options, strides, channels, dims)


def dynunet_encoder(options: DynUNetOptions, channels: int, dims: int) -> Levels:
    """Return the way down of MONAI's `DynUNet`.

    Source: Isensee et al., "Automated Design of Deep Learning Methods for Biomedical Image
    Segmentation", arXiv:1904.08128.
    """
    network = dynunet(options, dims, channels, channels).network()
    levels = [network.input_block, *network.downsamples, network.bottleneck]
    return Levels(levels, options, doubling(len(options.widths)), channels, dims)


class SwinEncoder(Backbone):
    """Encode images by a Swin transformer, and its maps by a block of convolutions each.

    The first map is that of a block on the image itself; the fifth is the transformer's own, as in
    MONAI's `SwinUNETR`.

    Source: Hatamizadeh et al., "Swin UNETR", BrainLes 2021, arXiv:2201.01266.

    Args:
        options: Channels of the first map, side of the windows, version, norm.
        channels: Channels of an image.
        dims: Number of spatial axes.
    """

    def __init__(self, options: SwinOptions, channels: int, dims: int) -> None:
        super().__init__()
        self.options, self.in_channels, self.dims = options, channels, dims
        width = options.features
        self.channels = (width, *(width << level for level in range(5)))
        self.strides = doubling(6)
        network = swin(options, dims, channels, channels).network()
        self.transformer = network.swinViT
        self.blocks = nn.ModuleList(
            [network.encoder1, network.encoder2, network.encoder3, network.encoder4]
        )
        self.deepest = network.encoder10

    def forward(self, images: Tensor) -> list[Tensor]:
        check_sides(images, self, self.options)
        *shallow, own, deepest = self.transformer(images)
        inputs = (images, *shallow)
        pyramid = [block(maps) for block, maps in zip(self.blocks, inputs, strict=True)]
        return [*pyramid, own, self.deepest(deepest)]

    def segments(self) -> list[nn.Module]:
        """Return the transformer and the blocks."""
        return [self.transformer, *self.blocks, self.deepest]
