"""A critic with the encoder of a U-Net, trained by WGAN-GP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Adversary

DIRA_API = 1


class UNetCriticOptions(Options):
    """The critic of Stepwise Pretraining's public code, and its loss."""

    width: PositiveInt = Field(
        32, description="channels of the first convolution; the deepest map has 16 times as many"
    )
    levels: int = Field(4, ge=1, le=7, description="pairs of convolutions; pools lie between them")
    norm: Literal["instance", "batch", "none"] = Field(
        "instance",
        description="after a convolution; batch, the public code's, ties the images of a batch "
        "together, which the penalty takes for independent",
    )
    penalty: float = Field(
        10.0, ge=0, description="weight of the gradient penalty; 100 with TransVW in that code"
    )
    conditional: bool = Field(False, description="the critic also sees the distorted image")


def build(options: UNetCriticOptions, channels: int, dims: int) -> Adversary:
    """Make a critic for images of so many channels and axes."""
    from dira_unetcritic.critic import UNetCritic

    return UNetCritic(options, channels, dims)


@hookimpl
def dira_adversaries() -> Iterable[Component]:
    """Offer the critic with the optimizer of Gulrajani et al."""
    yield Component(
        "unet-critic",
        UNetCriticOptions,
        build,
        summary="encoder of a U-Net as a critic, WGAN with a gradient penalty",
        paper="arXiv:1704.00028",
        defaults={
            "critic_optimizer": {
                "name": "adam",
                "lr": 1e-4,
                "lr_batch": None,
                "betas": (0.5, 0.9),
                "weight_decay": 0.0,
                "schedule": "constant",
            }
        },
    )
