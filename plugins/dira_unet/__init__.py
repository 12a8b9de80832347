"""U-Net decoder: restores the crop from all maps of the backbone."""

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
    n_restored: int = Field(1, ge=1, description="views restored, the first ones of the batch")


def build(options: UNetOptions, backbone: Backbone) -> Restorer:
    """Make a decoder for a backbone."""
    from dira_unet.unet import UNet

    return UNet(options, backbone)


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
