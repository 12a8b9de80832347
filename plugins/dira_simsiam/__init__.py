"""SimSiam: two views predict each other's embedding; no negatives, no teacher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator

DIRA_API = 1


class SimSiamOptions(Options):
    """Exploring simple siamese representation learning, Chen & He, CVPR 2021."""

    dim: int = Field(2048, gt=0, description="width of the projector and of the embedding z")
    hidden: int = Field(512, gt=0, description="width of the predictor's hidden layer")


def build(options: SimSiamOptions, backbone: Backbone) -> Discriminator:
    """Make a SimSiam for a backbone."""
    from dira_simsiam.simsiam import SimSiam

    return SimSiam(options, backbone)


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer SimSiam with the optimizer of its paper, at a rate for sources of thousands."""
    yield Component(
        "simsiam",
        SimSiamOptions,
        build,
        summary="two views predict each other's embedding",
        paper="arXiv:2011.10566",
        defaults={
            "optimizer": {
                "name": "sgd",
                "lr": 0.05,
                "lr_batch": 64,  # ours; its paper: 256, for a hundred times as many steps
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "schedule": "cosine",
                "warmup_epochs": 1.0,  # ours: the first gradients of L_res shake the backbone
            }
        },
    )
