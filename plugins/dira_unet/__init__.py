"""U-Net: a decoder that restores the crop from all maps of any backbone, and its 3-D encoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Restorer

DIRA_API = 1


class UNetOptions(Options):
    """The decoder of a U-Net, Ronneberger et al., MICCAI 2015."""

    widths: tuple[PositiveInt, ...] | None = Field(
        None,
        description="channels after each block, deep to shallow; none halves from 256 down to 16: "
        "256, 128, 64, 32, 16 for a ResNet",
    )
    loss: Literal["mse", "l1"] = Field("mse", description="mean squared or mean absolute error")
    region: Literal["all", "distorted"] = Field(
        "all", description="pixels that count: all, or those that `views.distort` changed"
    )
    up: Literal["nearest", "transposed"] = Field(
        "nearest", description="how a block doubles its maps: pixels repeated, or a convolution"
    )
    norm: Literal["batch", "instance", "group"] = Field("batch", description="after a convolution")
    head: Literal[1, 3] = Field(3, description="side of the last convolution's kernel")
    n_restored: int = Field(1, ge=1, description="views restored, the first ones of the batch")


class UNet3dOptions(Options):
    """The encoder of the 3-D U-Net of Models Genesis and TransVW."""

    width: PositiveInt = Field(
        32, description="channels of the first convolution; the deepest map has 16 times as many"
    )
    levels: int = Field(4, ge=2, le=7, description="maps; each has half the sides of the one above")
    norm: Literal["batch", "instance", "group"] = Field("batch", description="after a convolution")


def build(options: UNetOptions, backbone: Backbone) -> Restorer:
    """Make a decoder for a backbone."""
    from dira_unet.unet import UNet

    return UNet(options, backbone)


def build_encoder(options: UNet3dOptions, channels: int, dims: int) -> Backbone:
    """Make an encoder for volumes of so many channels."""
    from dira_unet.encoder import UNetEncoder

    return UNetEncoder(options, channels, dims)


@hookimpl
def dira_backbones() -> Iterable[Component]:
    """Offer the 3-D encoder."""
    yield Component(
        "unet3d",
        UNet3dOptions,
        build_encoder,
        summary="encoder of a 3-D U-Net: four maps of 64 to 512 channels",
        paper="arXiv:1606.06650",
        dims=(3,),
    )


@hookimpl
def dira_restorers() -> Iterable[Component]:
    """Offer the U-Net decoder."""
    yield Component(
        "unet",
        UNetOptions,
        build,
        summary="U-Net decoder with skips from every map of the backbone",
        paper="arXiv:1505.04597",
    )
