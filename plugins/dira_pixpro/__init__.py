"""PixPro: cells of two views that show the same place predict each other's embedding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator

DIRA_API = 1


class PixProOptions(Options):
    """Propagate yourself, Xie et al., CVPR 2021."""

    dim: int = Field(256, gt=0, description="width of the embedding of a cell")
    hidden: int = Field(4096, gt=0, description="width of the projector's hidden layer")
    momentum: float = Field(
        0.99, ge=0, le=1, description="part a teacher keeps of itself a step; rises to 1"
    )
    reach: float = Field(
        0.7, gt=0, description="cells nearer than this, in diagonals of a cell, are positives"
    )
    sharpness: float = Field(
        2.0, gt=0, description="power of the similarity that propagates, gamma in the paper"
    )


def build(options: PixProOptions, backbone: Backbone) -> Discriminator:
    """Make a PixPro for a backbone."""
    from dira_pixpro.pixpro import PixPro

    return PixPro(options, backbone)


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer PixPro with the optimizer of its paper."""
    yield Component(
        "pixpro",
        PixProOptions,
        build,
        summary="cells that show the same place predict each other",
        paper="arXiv:2011.10043",
        defaults={
            "optimizer": {
                "name": "lars",
                "lr": 1.0,
                "lr_batch": 256,
                "momentum": 0.9,
                "weight_decay": 1e-5,
                "schedule": "cosine",
                "warmup_epochs": 5,
            }
        },
    )
