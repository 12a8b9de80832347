"""A Discriminator by itself: built, trained for some steps, put back, spread over processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from parts import forked
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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
    box = torch.zeros(size, 2, 2)
    made = tuple(View(image, image, image, box) for image in images)
    return Batch(made, torch.arange(size) + size * seed)


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


def after_evaluation(name: str, **options: object) -> list[str]:
    """Name what a forward pass in evaluation mode changes."""
    backbone, module = build(name, **options)
    train(backbone, module, 0, 2)
    before = tensors(backbone.eval(), module.eval())
    module(Encodings(backbone, views(5, module.n_views, seed=9)))
    return differing(before, tensors(backbone, module))


def over_processes(work: Callable[[Batch], Mapping[str, Tensor]], batch: Batch, to: Path) -> None:
    """Compare what `work` returns of a batch with the mean of two processes' work on its halves."""
    half = len(batch.index) // 2

    def one(rank: int) -> None:
        dist.init_process_group("gloo", f"file://{to / 'store'}", rank=rank, world_size=2)
        rows = slice(rank * half, (rank + 1) * half)
        pieces = tuple(
            View(v.crop[rows], v.clean[rows], v.image[rows], v.box[rows]) for v in batch.views
        )
        save_file(dict(work(Batch(pieces, batch.index[rows]))), to / f"{rank}.safetensors")
        dist.destroy_process_group()

    pids = [forked(lambda rank=rank: one(rank)) for rank in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0, 0]
    results = [load_file(to / f"{rank}.safetensors") for rank in range(2)]
    whole = work(batch)
    torch.testing.assert_close({k: (results[0][k] + results[1][k]) / 2 for k in whole}, dict(whole))
