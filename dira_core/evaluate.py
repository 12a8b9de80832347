"""What a model does on views it never trains on: restorations and nearest neighbours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from dira_core.data.cutting import whole_images
from dira_core.data.dataset import Crops
from dira_core.data.loader import Loader
from dira_core.distributed import gather_rows, rank, world_size
from dira_core.metrics import embedding_stats, features, knn_accuracy, probe_split
from dira_core.precision import Precision
from dira_core.roles import Backbone, FeaturePass, Source
from dira_core.settings import Settings
from dira_core.trainer import restoration
from dira_core.trio import Attempt, Model
from dira_core.types import Batch

HELD_OUT_EPOCH = 2**31 - 1
"""Views of this epoch are never trained on."""

PROBED = 2000
"""Images a kNN probe looks at, at most."""

Pause = Callable[[], None]
"""Called between the pieces of long work, by all processes; it may raise, to end the work."""


@dataclass(frozen=True)
class Sample:
    """A fixed batch of views and what the model makes of it."""

    batch: Batch
    attempt: Attempt
    metrics: dict[str, float]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch a module to evaluation and back; no gradients."""
    was = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, training in was:
            m.training = training


def examine(model: Model, batch: Batch, precision: Precision) -> Sample:
    """Restore and embed a batch in evaluation mode; report errors and the spread of embeddings."""
    with evaluating(model), precision.autocast():
        attempt: Attempt = model(batch)
    found = restoration(batch, attempt.restored)
    embedding = None if attempt.objective is None else attempt.objective.embedding
    if embedding is not None and len(embedding) > 1:
        stats = embedding_stats(embedding)
        found |= {f"embedding/{name}": value for name, value in stats.items()}
    known = {name: float(value) for name, value in found.items() if value.isfinite()}
    return Sample(batch, attempt, known)


def pieces(positions: np.ndarray[Any, Any], size: int) -> Iterator[np.ndarray[Any, Any]]:
    """Cut positions into as few parts of at most `size` as there must be, nearly of one length."""
    if len(positions):
        yield from np.array_split(positions, -(-len(positions) // size))


def probe(
    backbone: Backbone,
    source: Source,
    settings: Settings,
    device: torch.device,
    pause: Pause = lambda: None,
) -> float | None:
    """Return the kNN accuracy of frozen features on the source's labels; None without labels.

    Half of the images (by a hash of their index) are neighbours, the other half are classified. The
    batch-norm statistics of a copy are measured on these images first: an untrained network has
    none, and a trained one has those of distorted crops.

    Args:
        backbone: Left as it is.
        source: Its labels count from 0; others than that are unknown.
        settings: Of the run.
        device: Where the backbone is.
        pause: Called before each batch; it may raise, to end the work.
    """
    if source.labels is None or not settings.log.probe:
        return None
    known = np.flatnonzero(source.labels >= 0)
    if len(np.unique(source.labels[known])) < 2 or len(known) < 40:
        return None
    chosen = known[np.linspace(0, len(known) - 1, min(PROBED, len(known))).astype(int)]
    size, channels = settings.views.size, settings.views.channels
    measured = copy.deepcopy(backbone)

    def images() -> Iterator[Tensor]:
        for piece in pieces(chosen, 128):  # a last one of few would count as much as the others
            pause()
            yield whole_images(source, piece.tolist(), size, channels)

    update_bn(images(), measured, device)
    embedded = features(measured, source, size, channels, chosen, device, pause)
    labels = torch.from_numpy(np.asarray(source.labels)[chosen].astype(np.int64))
    return knn_accuracy(embedded, labels, probe_split(len(chosen), settings.seed))


class SourceFeatures(FeaturePass):
    """Features of every image of a source, for Discriminators that cluster."""

    def __init__(
        self,
        backbone: Callable[[], Backbone],
        source: Source,
        settings: Settings,
        device: torch.device,
        pause: Pause = lambda: None,
    ) -> None:
        self._backbone = backbone
        self._source = source
        self._settings = settings
        self._device = device
        self._pause = pause

    def __call__(self) -> Tensor:
        """Return (N, channels[-1]) in float32 on the CPU; every process encodes a part."""
        views, n, processes = self._settings.views, len(self._source), world_size()
        backbone = self._backbone()
        each = -(-n // processes)
        mine = [min(i, n - 1) for i in range(rank() * each, (rank() + 1) * each)]
        size, channels, device = views.size, views.channels, self._device
        found = features(backbone, self._source, size, channels, mine, device, self._pause)
        return gather_rows(found)[:n]


def held_out(loader: Loader, rows: int) -> Crops:
    """Return crops of the first images of an epoch that is never trained on."""
    indices = loader.order(HELD_OUT_EPOCH, 0)[:rows].tolist()
    return loader.crops(indices, HELD_OUT_EPOCH)
