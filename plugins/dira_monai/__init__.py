"""Networks of MONAI: encoders of its 3-D U-Nets as backbones, with the decoders that match."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Pretrained, Restorer, Twin

DIRA_API = 1

UNET = "doi:10.1007/978-3-030-12029-0_40"
DYNUNET = "arXiv:1904.08128"
SWIN = "arXiv:2201.01266"

Norm = Literal["instance", "batch"]


class NormOptions(Options):
    """What all of them have."""

    norm: Norm = Field("instance", description="after a convolution; MONAI has instance")


class UNetOptions(NormOptions):
    """The encoder of MONAI's U-Net with residual units."""

    widths: tuple[PositiveInt, ...] = Field(
        (16, 32, 64, 128, 256),
        min_length=2,
        description="channels of each map; all but the last "
        "have half the sides of the one above, the last those of the one before",
    )
    units: int = Field(2, ge=0, description="convolutions of a residual unit; 0: one, no residual")


class DynUNetOptions(NormOptions):
    """The encoder of MONAI's DynUNet, the network of nnU-Net."""

    widths: tuple[PositiveInt, ...] = Field(
        (32, 64, 128, 256, 320),
        min_length=3,
        description="channels of each map; the first has "
        "the sides of the image, the others half those of the one above",
    )
    residual: bool = Field(False, description="blocks with a residual connection")


class SwinOptions(NormOptions):
    """The encoder of Swin UNETR: a Swin transformer, and blocks of convolutions on its maps."""

    features: int = Field(24, ge=12, multiple_of=12, description="channels of the first map")
    window: int = Field(7, ge=2, description="side of the windows of attention, in tokens")
    v2: bool = Field(False, description="a residual convolution before each stage (SwinUNETR-V2)")


class DecoderOptions(NormOptions):
    """A decoder of MONAI, on any backbone; the same numbers as MONAI's on the encoder it is for."""

    loss: Literal["mse", "l1"] = Field("mse", description="mean squared or mean absolute error")
    n_restored: int = Field(1, ge=1, description="views restored, the first ones of the batch")


class UNetDecoderOptions(DecoderOptions):
    """The decoder of MONAI's U-Net."""

    units: int = Field(2, ge=0, description="0: no residual unit after a transposed convolution")


def build_unet(options: UNetOptions, channels: int, dims: int) -> Backbone:
    """Make MONAI's U-Net's encoder."""
    from dira_monai.encoders import unet_encoder

    return unet_encoder(options, channels, dims)


def build_dynunet(options: DynUNetOptions, channels: int, dims: int) -> Backbone:
    """Make DynUNet's encoder."""
    from dira_monai.encoders import dynunet_encoder

    return dynunet_encoder(options, channels, dims)


def build_swin(options: SwinOptions, channels: int, dims: int) -> Backbone:
    """Make Swin UNETR's encoder."""
    from dira_monai.encoders import SwinEncoder

    return SwinEncoder(options, channels, dims)


def build_unet_decoder(options: UNetDecoderOptions, backbone: Backbone) -> Restorer:
    """Make the decoder of MONAI's U-Net."""
    from dira_monai.decoders import UNetDecoder

    return UNetDecoder(options, backbone)


def build_dynunet_decoder(options: DecoderOptions, backbone: Backbone) -> Restorer:
    """Make the decoder of DynUNet."""
    from dira_monai.decoders import SkipDecoder, dynunet_block

    return SkipDecoder(options, backbone, dynunet_block)


def build_swin_decoder(options: DecoderOptions, backbone: Backbone) -> Restorer:
    """Make the decoder of Swin UNETR."""
    from dira_monai.decoders import SkipDecoder, swin_block

    return SkipDecoder(options, backbone, swin_block)


def build_export(options: Options, weights: Pretrained) -> Twin:
    """Make the network of MONAI that weights are of."""
    from dira_monai.export import twin

    return twin(options, weights)


@hookimpl
def dira_backbones() -> Iterable[Component]:
    """Offer the encoders."""
    yield Component(
        "monai-unet",
        UNetOptions,
        build_unet,
        summary="encoder of MONAI's 3-D U-Net with residual units: five maps of 16 to 256 channels",
        paper=UNET,
        dims=(3,),
    )
    yield Component(
        "monai-dynunet",
        DynUNetOptions,
        build_dynunet,
        summary="encoder of MONAI's DynUNet (nnU-Net): five maps of 32 to 320 channels",
        paper=DYNUNET,
        dims=(3,),
    )
    yield Component(
        "monai-swin",
        SwinOptions,
        build_swin,
        summary="encoder of MONAI's Swin UNETR: six maps of 24 to 384 channels",
        paper=SWIN,
        dims=(3,),
    )


@hookimpl
def dira_restorers() -> Iterable[Component]:
    """Offer the decoders."""
    yield Component(
        "monai-unet",
        UNetDecoderOptions,
        build_unet_decoder,
        summary="decoder of MONAI's 3-D U-Net: transposed convolutions and residual units",
        paper=UNET,
        dims=(3,),
    )
    yield Component(
        "monai-dynunet",
        DecoderOptions,
        build_dynunet_decoder,
        summary="decoder of MONAI's DynUNet: transposed and two plain convolutions a map",
        paper=DYNUNET,
        dims=(3,),
    )
    yield Component(
        "monai-swin",
        DecoderOptions,
        build_swin_decoder,
        summary="decoder of MONAI's Swin UNETR: transposed convolutions and residual blocks",
        paper=SWIN,
        dims=(3,),
    )


@hookimpl
def dira_exports() -> Iterable[Component]:
    """Offer the whole networks."""
    yield Component(
        "monai",
        Options,
        build_export,
        summary="encoder and decoder as MONAI's `UNet`, `DynUNet` or `SwinUNETR`",
        dims=(3,),
    )
