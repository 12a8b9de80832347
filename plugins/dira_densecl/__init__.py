"""DenseCL: MoCo for whole images, and for each cell of the deepest map."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator

DIRA_API = 1


class DenseCLOptions(Options):
    """Dense contrastive learning for visual pre-training, Wang et al., CVPR 2021."""

    dim: int = Field(128, gt=0, description="width of the embeddings of images and of cells")
    temperature: float = Field(0.2, gt=0, description="cosines are divided by it")
    momentum: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="part a teacher keeps of itself a step",
    )
    dense: float = Field(0.5, ge=0, le=1, description="weight of the cells, lambda in the paper")
    queue: int | None = Field(
        None, gt=0, description="keys kept; none: one for each image of the source, at most 65536"
    )


def build(options: DenseCLOptions, backbone: Backbone) -> Discriminator:
    """Make a DenseCL for a backbone."""
    from dira_densecl.densecl import DenseCL

    return DenseCL(options, backbone)


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer DenseCL with the optimizer of its paper."""
    yield Component(
        "densecl",
        DenseCLOptions,
        build,
        summary="images and cells of a map are told from queues of others",
        paper="arXiv:2011.09157",
        defaults={
            "optimizer": {
                "name": "sgd",
                "lr": 0.3,  # on COCO, the size of medical sources; 0.03 on ImageNet
                "lr_batch": 256,
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "schedule": "cosine",
            }
        },
    )
