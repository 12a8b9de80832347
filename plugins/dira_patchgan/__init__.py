"""PatchGAN: a critic that scores every patch of an image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Adversary

DIRA_API = 1


class PatchGANOptions(Options):
    """A critic of patches, Isola et al., CVPR 2017."""

    widths: tuple[PositiveInt, ...] = Field(
        (64, 128, 256, 512), min_length=1, description="channels after each block"
    )
    loss: Literal["lsgan", "bce", "minimax", "hinge", "wgan-gp"] = Field(
        "lsgan",
        description="lsgan: what the paper's code does; minimax: the paper's eq. 3 to the letter; "
        "bce: the same critic with a generator's loss that does not saturate; hinge; wgan-gp",
    )
    penalty: float = Field(
        10.0, ge=0, description="weight of the gradient penalty; of loss wgan-gp alone"
    )
    conditional: bool = Field(False, description="the critic also sees the distorted image")


def build(options: PatchGANOptions, channels: int, dims: int) -> Adversary:
    """Make a critic for images of so many channels and axes."""
    from dira_patchgan.patchgan import PatchGAN

    return PatchGAN(options, channels, dims)


@hookimpl
def dira_adversaries() -> Iterable[Component]:
    """Offer the critic with the optimizer of the paper's code."""
    yield Component(
        "patchgan",
        PatchGANOptions,
        build,
        summary="critic of patches: four blocks of 3x3 convolutions with instance norm",
        paper="arXiv:1611.07004",
        defaults={
            "critic_optimizer": {
                "name": "adam",
                "lr": 2e-4,
                "lr_batch": None,
                "betas": (0.5, 0.999),
                "weight_decay": 0.0,
                "schedule": "constant",
            }
        },
    )
