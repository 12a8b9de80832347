"""MoCo-v2: find the other view of an image among the keys of many others, kept in a queue."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator

DIRA_API = 1


class MoCoOptions(Options):
    """Improved baselines with momentum contrastive learning, Chen et al., 2020."""

    dim: int = Field(128, gt=0, description="width of the embedding z")
    head_norm: bool = Field(
        True,
        description="batch norms in the projector, as in MoCo v3: without, all images of a source "
        "start with almost one embedding; false: as published",
    )
    temperature: float = Field(0.2, gt=0, description="cosines are divided by it")
    momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="part a teacher keeps of itself a step; none: 1 - 10 / steps, at most 0.999",
    )
    queue: int | None = Field(
        None, gt=0, description="keys kept; none: a twentieth of the source, from 64 to 65536"
    )
    others_only: bool = Field(
        True,
        description="negatives are keys of other images, those of the batch too; false: only the "
        "queue's, an image's own of earlier epochs and its random start among them, as published",
    )
    key_norm: Literal["average", "batch"] = Field(
        "average",
        description="the teacher's batch norms use averaged statistics (EMAN, as good as shuffling "
        "keys between processes), or those of the batch, as the public code on one GPU",
    )


def build(options: MoCoOptions, backbone: Backbone) -> Discriminator:
    """Make a MoCo-v2 for a backbone."""
    from dira_moco.moco import MoCo

    return MoCo(options, backbone)


OPTIMIZER = {  # public code
    "name": "sgd",
    "lr": 0.03,
    "lr_batch": 64,  # ours; public code: 256, for a thousand times as many steps
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "cosine",
}


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer MoCo-v2 with the optimizer of its public code, at a rate for sources of thousands."""
    yield Component(
        "mocov2",
        MoCoOptions,
        build,
        summary="a view is told from a queue of other images by its teacher's key",
        paper="arXiv:2003.04297",
        defaults={"optimizer": OPTIMIZER},
    )
