"""What features are worth: nearest neighbours, spread, rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dira_core.data.cutting import whole_images
from dira_core.draws import Draws
from dira_core.encodings import pool
from dira_core.roles import Backbone, Source

FEATURE_BATCH = 64
"""Images encoded at once by `features`."""


def knn_accuracy(
    features: Tensor, labels: Tensor, train: Tensor, k: int = 20, temperature: float = 0.07
) -> float:
    """Classify by the k most similar features, each voting with exp(cosine / temperature).

    Source: Wu et al., "Unsupervised feature learning via non-parametric instance discrimination",
    CVPR 2018, arXiv:1805.01978, section 3.4.

    Args:
        features: (N, D).
        labels: (N,) int64, from 0 on.
        train: (N,) bool, the neighbours; the others are classified.
        k: Number of neighbours; all of them where there are fewer.
        temperature: Of the weights.

    Returns:
        Part of the classified features whose label is right.

    Raises:
        ValueError: There is nothing to classify, or no neighbour.
    """
    if train.all() or not train.any():
        raise ValueError("both neighbours and features to classify are needed")
    z = F.normalize(features.float(), dim=1)
    cosine, nearest = (z[~train] @ z[train].T).topk(min(k, int(train.sum())), dim=1)
    votes = torch.zeros(len(cosine), int(labels.max()) + 1, device=z.device)
    weight = ((cosine - 1) / temperature).exp()
    votes.scatter_add_(1, labels[train][nearest], weight)
    return float((votes.argmax(1) == labels[~train]).float().mean())


def embedding_stats(z: Tensor) -> dict[str, Tensor]:
    """Measure how far embeddings are from collapse.

    Source of the rank: Roy and Vetterli, "The effective rank", EUSIPCO 2007, definition 1.

    Args:
        z: Embeddings, (B, D), B at least 2.

    Returns:
        "std": standard deviation of the L2-normalised embeddings, averaged over dimensions, times
        sqrt(D): 1 is healthy, 0 collapsed. "rank": their effective rank, exp of the entropy of the
        normalised singular values, 1 to min(B, D). Both scalars in float32.
    """
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        unit = F.normalize(z.detach().float(), dim=1)
        std = unit.std(0).mean() * unit.shape[1] ** 0.5
        if not unit.isfinite().all():
            return {"std": std, "rank": std}  # NaN: no decomposition takes it
        singular = torch.linalg.svdvals(unit)
        share = singular / singular.sum().clamp(min=torch.finfo(torch.float32).tiny)
        return {"std": std, "rank": torch.special.entr(share).sum().exp()}


def probe_split(n: int, seed: int) -> Tensor:
    """Return which of n samples are neighbours, (n,) bool: half, decided for each by its index."""
    return Draws(torch.arange(n), seed=seed, path="probe").bernoulli("train", 0.5)


def features(
    backbone: Backbone,
    source: Source,
    size: int | Sequence[int],
    channels: int,
    indices: Sequence[int],
    device: torch.device,
    pause: Callable[[], None] = lambda: None,
) -> Tensor:
    """Encode whole images with the backbone in evaluation mode; its state is left untouched.

    Args:
        backbone: Encodes.
        source: Where the images come from.
        size: Side of the images, in px.
        channels: Of the images.
        indices: Of the images in their source.
        device: Where the backbone is.
        pause: Called before each batch; it may raise, to end the work.

    Returns:
        The deepest map averaged over space, (N, backbone.channels[-1]) float32 on the CPU.
    """
    training = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with torch.no_grad():
            batches = [
                indices[i : i + FEATURE_BATCH] for i in range(0, len(indices), FEATURE_BATCH)
            ]
            found = []
            for batch in batches:
                pause()
                images = whole_images(source, batch, size, channels).to(device)
                found.append(pool(backbone(images)[-1]).cpu())
            return torch.cat(found)
    finally:
        for module, was in training.items():
            module.training = was
