"""Barlow Twins: dimensions of the embedding agree over views and not among each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator

DIRA_API = 1


class BarlowOptions(Options):
    """Barlow Twins: self-supervised learning via redundancy reduction, Zbontar et al., 2021."""

    dim: int = Field(8192, gt=0, description="width of the projector and of the embedding z")
    lambd: float = Field(0.0051, ge=0, description="weight of the off-diagonal correlations")
    scale: float = Field(
        0.024, gt=0, description="factor on the loss, whose terms are as many as dim squared"
    )


def build(options: BarlowOptions, backbone: Backbone) -> Discriminator:
    """Make a Barlow Twins for a backbone."""
    from dira_barlow.barlow import Barlow

    return Barlow(options, backbone)


OPTIMIZER = {
    "name": "lars",
    # the authors, facebookresearch/barlowtwins#7: the best rate for each batch, times batch / 256
    "lr": {128: 0.7, 256: 0.4, 512: 0.3, 1024: 0.25, 2048: 0.2},
    "lr_batch": 256,
    "momentum": 0.9,
    "trust": 1e-3,
    "weight_decay": 1e-6,  # public code; 1.5e-6 in the paper, section 2.2
    "decay_1d": False,
    # public code: norms and biases at 0.0048 / 0.2 of the rate. Only they notice the scale of the
    # loss, so its earlier version's loss times 0.024 is the same; here the decoder has some too.
    "scale_1d": 1.0,
    "schedule": "cosine",
    "warmup_epochs": 10,
    "floor": 0.001,
}


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer Barlow Twins with the optimizer of its public code."""
    yield Component(
        "barlow",
        BarlowOptions,
        build,
        summary="dimensions agree over views and are uncorrelated among each other",
        paper="arXiv:2103.03230",
        defaults={"optimizer": OPTIMIZER},
    )
