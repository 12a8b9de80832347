"""DeepCluster: cluster the features of all images each epoch, then learn to tell the clusters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator

DIRA_API = 1


class DeepClusterOptions(Options):
    """Deep clustering for unsupervised learning, Caron et al., ECCV 2018."""

    clusters: int | None = Field(
        None, ge=2, description="number of clusters; none: images of the source / 10, at most 10000"
    )
    pca: int = Field(256, gt=0, description="dimensions that are whitened and clustered, at most")
    iterations: int = Field(20, gt=0, description="of k-means, each epoch")


def build(options: DeepClusterOptions, backbone: Backbone) -> Discriminator:
    """Make a DeepCluster for a backbone."""
    from dira_deepcluster.deepcluster import DeepCluster

    return DeepCluster(options, backbone)


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer DeepCluster with the optimizer of its public code."""
    yield Component(
        "deepcluster",
        DeepClusterOptions,
        build,
        summary="clusters of features are the classes of the next epoch",
        paper="arXiv:1807.05520",
        defaults={
            "optimizer": {
                "name": "sgd",
                "lr": 0.05,
                "lr_batch": 256,
                "momentum": 0.9,
                "weight_decay": 1e-5,
                "schedule": "constant",
            }
        },
    )
