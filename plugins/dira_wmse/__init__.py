"""W-MSE: whiten the embeddings of each view, then bring those of an image together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator

DIRA_API = 1


class WMSEOptions(Options):
    """Whitening for self-supervised representation learning, Ermolov et al., 2021."""

    dim: int = Field(
        64,
        gt=0,
        description="width of the embedding z; batches below 2 dim are whitened in groups of "
        "dimensions, each of at most half the batch",
    )
    hidden: int = Field(1024, gt=0, description="width of the projector's hidden layer")
    iterations: int = Field(1, gt=0, description="times a batch is cut into slices anew")
    epsilon: float = Field(
        1e-4,
        ge=0,
        description="added to the covariance, times (1 + mean variance); 0 in the public code",
    )


def build(options: WMSEOptions, backbone: Backbone) -> Discriminator:
    """Make a W-MSE for a backbone."""
    from dira_wmse.wmse import WMSE

    return WMSE(options, backbone)


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer W-MSE with the optimizer of its paper; its rate falls in steps there."""
    yield Component(
        "wmse",
        WMSEOptions,
        build,
        summary="whitened embeddings of the views of an image are brought together",
        paper="arXiv:2007.06346",
        defaults={
            "optimizer": {
                "name": "adam",
                "lr": 1e-3,
                "lr_batch": None,
                "betas": [0.9, 0.999],
                "weight_decay": 1e-6,
                "schedule": "cosine",
            }
        },
    )
