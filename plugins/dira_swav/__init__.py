"""SwAV: predict the prototypes of one view from the others; large crops and small ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator

DIRA_API = 1


class SwAVOptions(Options):
    """Unsupervised learning by contrasting cluster assignments, Caron et al., 2020."""

    small_views: int = Field(6, ge=0, description="views besides the two that are assigned")
    dim: int = Field(128, gt=0, description="width of the embedding z")
    hidden: int = Field(2048, gt=0, description="width of the projector's hidden layer")
    temperature: float = Field(0.1, gt=0, description="cosines are divided by it")
    prototypes: int = Field(
        3000, ge=2, description="number of prototypes; at most one for ten images of the source"
    )
    freeze_steps: int = Field(313, ge=0, description="steps before prototypes are trained")
    epsilon: float = Field(
        # below it, exp(-2 / epsilon) is no normal number of float32
        0.05,
        ge=0.025,
        description="softness of assignments; lower it if the loss stays at ln(prototypes)",
    )
    iterations: int = Field(3, ge=1, description="of Sinkhorn's algorithm")
    queue: int = Field(
        3840,
        ge=0,
        description="earlier embeddings of each of the two views that are assigned along with the "
        "batch; at most one for each image of the source",
    )
    queue_epoch: int = Field(15, ge=0, description="epoch from which on the queue is used")


def build(options: SwAVOptions, backbone: Backbone) -> Discriminator:
    """Make a SwAV for a backbone."""
    from dira_swav.swav import SwAV

    return SwAV(options, backbone)


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer SwAV with the optimizer and the crops of its public code."""
    yield Component(
        "swav",
        SwAVOptions,
        build,
        summary="the prototypes of one crop are predicted from large and small others",
        paper="arXiv:2006.09882",
        defaults={
            "optimizer": {
                "name": "lars",
                "lr": {256: 0.6, 4096: 0.3},  # times batch / 256
                "lr_batch": 256,
                "momentum": 0.9,
                "weight_decay": 1e-6,
                "decay_1d": False,
                "schedule": "cosine",
                "warmup_epochs": 10,
                "floor": 0.001,
            },
            "views": {
                "each": [
                    {"repeat": 2, "scale": [0.14, 1.0]},
                    {"repeat": 6, "scale": [0.05, 0.14], "side": 96 / 224},
                ]
            },
        },
    )
