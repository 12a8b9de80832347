"""The DeepCluster Discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dira_core import (
    Backbone,
    Discriminator,
    Encodings,
    FeaturePass,
    Objective,
    Progress,
    RecipeError,
    classification,
    kmeans,
    pca_whiten,
)
from dira_deepcluster import DeepClusterOptions

MOST = 10_000
"""Clusters whose number is left to the data, at most: what the paper uses."""


class DeepCluster(Discriminator):
    """Tell the cluster that an image's features fell into at the start of the epoch.

    Source: Caron et al., "Deep Clustering for Unsupervised Learning of Visual Features", ECCV 2018,
    arXiv:1807.05520, eq. 1 and 2. Clusters are made of whole images and told from their views. The
    loss is weighted by the inverse of the cluster's size, which in expectation is the paper's
    uniform sampling of clusters (section 3.3). Labels are buffers: a run resumed in the middle of
    an epoch goes on with them.

    Deviations: no Sobel filter before the backbone, which is the Restorer's as well; and the new
    classifier of each epoch meets the momentum of the old one for its first steps.

    Args:
        options: Number of clusters, dimensions.
        backbone: Gives the features, (B, backbone.channels[-1]).
    """

    n_views = 1
    cluster: Tensor
    weight: Tensor
    base: Tensor
    head: nn.Linear

    def __init__(self, options: DeepClusterOptions, backbone: Backbone) -> None:
        super().__init__()
        self._options = options
        self._width = backbone.channels[-1]

    def prepare(self, n_images: int) -> None:
        """Make the classifier, and a label for each image: until the first epoch, in turns."""
        k = self._options.clusters or max(2, min(MOST, n_images // 10))
        if k > n_images:
            raise RecipeError(
                f"deepcluster needs an image for each cluster: got {k} clusters for {n_images} "
                "images, set discriminator.clusters to less or to none"
            )
        self.head = nn.Linear(self._width, k)
        self.register_buffer("cluster", torch.arange(n_images) % k)
        self.register_buffer("weight", torch.ones(k))
        self.register_buffer("base", torch.randint(2**31, ()))

    def forward(self, encodings: Encodings) -> Objective:
        cluster = self.cluster[encodings.batch.index]
        return classification(self.head(encodings[0].pooled), cluster, self.weight[cluster])

    @torch.no_grad()
    def epoch_started(self, progress: Progress, features: FeaturePass) -> None:
        """Cluster all images, start the classifier anew; draws depend on seed and epoch alone."""
        generator = torch.Generator().manual_seed(int(self.base) + progress.epoch)
        points = pca_whiten(features().to(self.cluster.device), self._options.pca)
        k = len(self.weight)
        self.cluster.copy_(kmeans(points, k, self._options.iterations, generator))
        size = torch.bincount(self.cluster, minlength=k)
        self.weight.copy_(len(points) / (size.clamp(min=1) * (size > 0).sum()))
        self.head.weight.copy_(0.01 * torch.randn(self.head.weight.shape, generator=generator))
        self.head.bias.zero_()
