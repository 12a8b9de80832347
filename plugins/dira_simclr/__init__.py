"""SimCLR: tell the other view of an image from all other views in the batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator

DIRA_API = 1


class SimCLROptions(Options):
    """A simple framework for contrastive learning of visual representations, Chen et al., 2020."""

    dim: int = Field(128, gt=0, description="width of the embedding z")
    hidden: int = Field(2048, gt=0, description="width of the projector's hidden layer")
    temperature: float = Field(0.1, gt=0, description="cosines are divided by it")


def build(options: SimCLROptions, backbone: Backbone) -> Discriminator:
    """Make a SimCLR for a backbone."""
    from dira_simclr.simclr import SimCLR

    return SimCLR(options, backbone)


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer SimCLR with the optimizer of its paper."""
    yield Component(
        "simclr",
        SimCLROptions,
        build,
        summary="a view is told from all other views in the global batch",
        paper="arXiv:2002.05709",
        defaults={
            "optimizer": {
                "name": "lars",
                "lr": 0.3,
                "lr_batch": 256,
                "momentum": 0.9,
                "weight_decay": 1e-6,
                "decay_1d": False,
                "schedule": "cosine",
                "warmup_epochs": 10,
            }
        },
    )
