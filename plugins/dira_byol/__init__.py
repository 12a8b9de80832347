"""BYOL: predict a slow teacher's embedding of the other view; no negatives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator

DIRA_API = 1


class BYOLOptions(Options):
    """Bootstrap your own latent: a new approach to self-supervised learning, Grill et al., 2020."""

    dim: int = Field(256, gt=0, description="width of the embedding z and of the prediction p")
    hidden: int = Field(4096, gt=0, description="width of the hidden layer of both heads")
    momentum: float = Field(
        0.99,
        ge=0,
        le=1,
        description="part the teacher keeps of itself a step at the start; rises to 1 by a cosine "
        "(0.99 is the paper's for 300 epochs, 0.996 for 1000)",
    )


def build(options: BYOLOptions, backbone: Backbone) -> Discriminator:
    """Make a BYOL for a backbone."""
    from dira_byol.byol import BYOL

    return BYOL(options, backbone)


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer BYOL with the optimizer of its paper, for 300 epochs (as momentum 0.99 is)."""
    yield Component(
        "byol",
        BYOLOptions,
        build,
        summary="a view predicts a slow teacher's embedding of the other",
        paper="arXiv:2006.07733",
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
