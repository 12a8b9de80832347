"""A Discriminator by itself: built, trained for some steps, put back, spread over processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from world import WORLD, together

from dira_core import (
    Backbone,
    Batch,
    Discriminator,
    Encodings,
    FeaturePass,
    Progress,
    View,
)
from dira_core.plugins import make
from dira_core.testing import TinyBackbone, choice


class Flat(Backbone):
    """One map: a 1x1 convolution, whose features of an image depend on no other image."""

    channels, strides, in_channels, dims = (6,), (1,), 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [(20 * self.conv(images)).tanh()]


class NoFeatures(FeaturePass):
    """For methods that ask for none."""

    def __call__(self) -> Tensor:
        raise AssertionError("no feature pass is needed")


def views(size: int, n_views: int = 2, seed: int = 0, small: int = 16) -> Batch:
    """Return random views of `size` images; the third and later ones are `small` px wide."""
    generator = torch.Generator().manual_seed(seed)
    sides = [16, 16, *[small] * (n_views - 2)]
    images = [torch.rand(size, 1, side, side, generator=generator) for side in sides]
    return seen(*images, index=torch.arange(size) + size * seed)


def seen(*images: Tensor, index: Tensor | None = None, label: Tensor | None = None) -> Batch:
    """Return views (B, C, H, W) that nothing was done to, of images 0 to B - 1 unless said."""
    size = len(images[0])
    made = tuple(View(image, image, torch.zeros(size, 2, 2), label) for image in images)
    return Batch(made, torch.arange(size) if index is None else index)


def part(batch: Batch, rows: slice) -> Batch:
    """Return some images of a batch."""
    views = (
        View(
            v.crop[rows], v.image[rows], v.box[rows], make_clean=partial(v.clean.__getitem__, rows)
        )
        for v in batch.views
    )
    return Batch(tuple(views), batch.index[rows])


def told_apart(scores: Tensor, label: Tensor) -> tuple[Tensor, float]:
    """Return minus the mean log probability of the right class, and how often it is the likeliest.

    Args:
        scores: (B, K).
        label: (B,) int64.
    """
    losses, right = [], 0
    for row, number in zip(scores, label.tolist(), strict=True):
        total = sum(math.e**score for score in row)
        losses.append(-torch.log(math.e ** row[number] / total))
        right += row.tolist().index(max(row.tolist())) == number
    return torch.stack(losses).mean(), right / len(label)


def build(
    name: str, backbone: Backbone | None = None, n_images: int = 64, **options: object
) -> tuple[Backbone, Discriminator]:
    """Build a backbone, unless given, and a Discriminator for it; seeded."""
    torch.manual_seed(0)
    backbone = backbone or TinyBackbone()
    module: Discriminator = make(
        "discriminator", choice("discriminator", name, **options), backbone
    )
    module.prepare(n_images)
    return backbone, module


def train(backbone: Backbone, module: Discriminator, first: int, last: int) -> list[Tensor]:
    """Take steps `first` to `last` - 1 of eight, two an epoch, downhill; return the losses."""
    trained = [p for m in (backbone, module) for p in m.parameters() if p.requires_grad]
    losses: list[Tensor] = []
    for step in range(first, last):
        torch.manual_seed(step)
        progress = Progress(step, 8, step // 2, 4)
        if step % 2 == 0:
            module.epoch_started(progress, NoFeatures())
        given = views(5, module.n_views, seed=step, small=8)
        losses.append(module(Encodings(backbone, given)).loss)
        gradients = torch.autograd.grad(losses[-1], trained)
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.sub_(0.1 * gradient)
        module.after_step(progress)
    return losses


def tensors(backbone: Backbone, module: Discriminator) -> dict[str, Tensor]:
    """Copy all that a checkpoint holds."""
    return {k: v.clone() for k, v in nn.ModuleList([backbone, module]).state_dict().items()}


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors whose bits differ, or that are in one only."""
    both = first.keys() & second.keys()
    return sorted((first.keys() ^ second.keys()) | {k for k in both if not same(first, second, k)})


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor], key: str) -> bool:
    return torch.equal(first[key], second[key])


def after_resuming(name: str, **options: object) -> list[str]:
    """Name what differs between six steps at once and three, a fresh start from a state, three."""
    whole = build(name, **options)
    train(*whole, 0, 6)
    broken = build(name, **options)
    train(*broken, 0, 3)
    resumed = build(name, **options)
    train(*resumed, 0, 1)
    nn.ModuleList(resumed).load_state_dict(tensors(*broken))
    train(*resumed, 3, 6)
    return differing(tensors(*whole), tensors(*resumed))


def loss_and_gradients(
    backbone: Backbone, module: Discriminator
) -> Callable[[Batch], dict[str, Tensor]]:
    """Return a function of a batch: the loss, and its gradient by every parameter."""
    parameters = dict(nn.ModuleList([backbone, module]).named_parameters())

    def work(batch: Batch) -> dict[str, Tensor]:
        loss = module(Encodings(backbone, batch)).loss
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        return {"loss": loss.detach(), **dict(zip(parameters, gradients, strict=True))}

    return work


def over_processes(work: Callable[[Batch], Mapping[str, Tensor]], batch: Batch, to: Path) -> None:
    """Compare what `work` returns of a batch with the mean of the processes' work on its parts."""
    size = len(batch.index) // WORLD
    results = together(to, lambda rank: work(part(batch, slice(rank * size, (rank + 1) * size))))
    whole = dict(work(batch))
    mean = {key: sum(found[key] for found in results) / WORLD for key in whole}
    torch.testing.assert_close(mean, whole)
