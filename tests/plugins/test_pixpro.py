"""PixPro against equations 1 and 3 to 5 of its paper, written plainly; places by brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dira_core import Backbone, Batch, Encodings, Progress, View
from dira_core.data.dataset import CropDataset, Request
from dira_core.layering import Layer
from dira_core.optimizer_options import Optimizer
from dira_core.plugins import installed, make
from dira_core.resolving import resolve
from dira_core.testing import TinySource, choice
from dira_core.views import ViewMaker
from dira_pixpro.pixpro import PixPro, consistency, propagate, same_place

Edges = Sequence[Sequence[float]]


class Shallow(Backbone):
    """One map of 3 x 4 cells from 12 x 16 px."""

    channels, strides, in_channels, dims = (6,), (4,), 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 4, 4)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.conv(images).tanh()]


BOXES = (
    ([[0, 12], [0, 16]], [[0, 12], [0, 16]]),  # the same crop
    ([[0, 12], [16, 0]], [[3, 9], [2, 18]]),  # one is flipped
    ([[20, 5], [3, 9]], [[2, 30], [11, 1]]),  # both are, along other axes
    ([[0, 12], [0, 16]], [[50, 62], [50, 66]]),  # no place in common
    ([[0, 100], [0, 20]], [[90, 10], [0, 30]]),
)


def batch(size: int) -> Batch:
    images = torch.rand(2, size, 1, 12, 16, generator=torch.Generator().manual_seed(size))
    boxes = torch.tensor(BOXES[-size:], dtype=torch.float32).unbind(1)
    views = tuple(View(i, i, b) for i, b in zip(images, boxes, strict=True))
    return Batch(views, torch.arange(size))


def build(backbone: Backbone) -> PixPro:
    module = make("discriminator", choice("discriminator", "pixpro", dim=5, hidden=7), backbone)
    assert isinstance(module, PixPro)
    with torch.no_grad():  # a teacher that differs from its student
        for parameter in module.teacher.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return module


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def centre(edges: Edges, cell: Sequence[int], extent: Sequence[int]) -> list[float]:
    """Return where a cell's centre lies in the source: linear from the first edge to the last."""
    along = zip(edges, cell, extent, strict=True)
    return [first + (i + 0.5) / n * (last - first) for (first, last), i, n in along]


def diagonal(edges: Edges, extent: Sequence[int]) -> float:
    return math.hypot(*((b - a) / n for (a, b), n in zip(edges, extent, strict=True)))


def near(box: Edges, other: Edges, extent: Sequence[int], reach: float) -> list[list[bool]]:
    places = list(itertools.product(*map(range, extent)))
    unit_length = max(diagonal(box, extent), diagonal(other, extent))
    return [
        [
            math.dist(centre(box, a, extent), centre(other, b, extent)) / unit_length < reach
            for b in places
        ]
        for a in places
    ]


def propagated(maps: Tensor, values: Tensor, power: float) -> Tensor:
    """Return equation 3 with equation 4, cell by cell: (C, N) -> (D, N)."""
    result = []
    for i in range(maps.shape[1]):
        total = torch.zeros(values.shape[0])
        for j in range(maps.shape[1]):
            cosine = unit(maps[:, i]) @ unit(maps[:, j])
            total = total + cosine.clamp(min=0) ** power * unit(values[:, j])
        result.append(total)
    return torch.stack(result, 1)


def mean_cosine(y: Tensor, key: Tensor, positive: list[list[bool]]) -> Tensor:
    """Return the mean of equation 5 over an image's pairs, or 0: (C, N), (C, M)."""
    found = [
        unit(y[:, i]) @ unit(key[:, j])
        for i, row in enumerate(positive)
        for j, is_positive in enumerate(row)
        if is_positive
    ]
    return torch.stack(found).mean() if found else torch.zeros(())


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Shallow()


@pytest.mark.parametrize("size", [2, 3, 5])
def test_loss_and_gradients_are_those_of_the_paper(backbone: Backbone, size: int) -> None:
    module, given = build(backbone), batch(size)
    objective = module(Encodings(backbone, given))
    parameters = [*backbone.parameters(), *(p for p in module.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(objective.loss, parameters)

    maps = [module.projector(backbone(view.image)[-1]) for view in given.views]
    values = [module.transform(m) for m in maps]
    with torch.no_grad():
        keys = [module.teacher[1](module.teacher[0](view.image)[-1]) for view in given.views]
    expected, pairs = torch.zeros(()), 0
    for b in range(size):
        boxes = [view.box[b].tolist() for view in given.views]
        for here, there in ((0, 1), (1, 0)):
            y = propagated(maps[here][b].flatten(1), values[here][b].flatten(1), 2)
            positive = near(boxes[here], boxes[there], (3, 4), 0.7)
            expected = expected - mean_cosine(y, keys[there][b].flatten(1), positive) / size
            pairs += sum(map(sum, positive))
    torch.testing.assert_close(objective.loss, expected, atol=1e-5, rtol=1e-5)
    reference = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(gradients, reference, atol=1e-5, rtol=1e-4)
    assert objective.metrics["pairs"].item() == pytest.approx(pairs / 2 / size)


@pytest.mark.parametrize("extent", [(3, 4), (1, 1), (2, 3, 2)])
@pytest.mark.parametrize("reach", [0.3, 0.7])
def test_cells_at_the_same_place_are_those_of_brute_force(
    extent: tuple[int, ...], reach: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    axes = len(extent)
    start = 40 * torch.rand(30, 2, axes, generator=generator)
    side = 10 + 60 * torch.rand(30, 2, axes, generator=generator)
    edges = torch.stack([start, start + side], -1)
    flip = torch.rand(30, 2, axes, 1, generator=generator) < 0.5
    box, other = torch.where(flip, edges.flip(-1), edges).unbind(1)
    found = same_place(box, other, torch.Size(extent), torch.Size(extent), reach)
    plain = [near(a, b, extent, reach) for a, b in zip(box.tolist(), other.tolist(), strict=True)]
    assert torch.equal(found, torch.tensor(plain))
    assert 0 < found.float().mean() < 1


def test_maps_of_unlike_sizes_share_places_too() -> None:
    box, other = torch.tensor([[[0.0, 8.0], [0.0, 8.0]]]), torch.tensor([[[0.0, 4.0], [8.0, 4.0]]])
    found = same_place(box, other, torch.Size((4, 4)), torch.Size((2, 2)), 0.1)[0]
    pairs = {(n // 4, n % 4): (m // 2, m % 2) for n, m in found.nonzero().tolist()}
    assert pairs == {(0, 3): (0, 0), (0, 2): (0, 1), (1, 3): (1, 0), (1, 2): (1, 1)}


def test_a_view_whose_place_cannot_be_told_is_near_nothing() -> None:
    box = torch.tensor([[[0.0, 8.0], [0.0, 8.0]]])
    unknown = torch.full_like(box, torch.nan)
    assert not same_place(box, unknown, torch.Size((2, 2)), torch.Size((2, 2)), 0.7).any()


class Cells(TinySource):
    """Images of 8 x 8 px that all differ: a pixel is a cell."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._pixels = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8).repeat(n, 0)


def test_positives_show_the_same_pixels_in_views_the_engine_makes() -> None:
    flips = [{"name": "flip", "axis": -1, "p": 0.5}, {"name": "flip", "axis": -2, "p": 0.5}]
    chosen = {
        "data": "phantom",
        "backbone": "resnet18",
        "discriminator": "pixpro",
        "views": {"geometry": flips, "size": 8, "scale": (1, 1), "ratio": (1, 1)},
    }
    recipe = resolve([Layer("test", chosen)]).recipe
    crops = CropDataset(Cells(24), recipe, 2).crops(Request(range(24), epoch=0))
    a, b = ViewMaker(recipe, torch.device("cpu"), 2)(crops, 0, 0).views
    found = same_place(a.box, b.box, torch.Size((8, 8)), torch.Size((8, 8)), 0.1)
    same = a.crop.flatten(1)[:, :, None] == b.crop.flatten(1)[:, None]
    assert torch.equal(found, same)
    assert not torch.equal(a.crop, b.crop)


def test_images_without_a_place_in_common_have_no_loss_and_a_finite_gradient() -> None:
    maps = torch.randn(2, 4, 3, 3, requires_grad=True)
    loss = consistency(maps, torch.randn(2, 4, 3, 3), torch.zeros(2, 9, 9, dtype=torch.bool))
    assert loss == 0
    assert not torch.autograd.grad(loss, maps)[0].any()


def test_one_pair_counts_as_much_as_many() -> None:
    y, key = torch.randn(2, 1, 4, 2, 2)
    pairs = torch.zeros(1, 4, 4, dtype=torch.bool)
    pairs[0, 1, 2] = True
    expected = -unit(y[0, :, 0, 1]) @ unit(key[0, :, 1, 0])
    torch.testing.assert_close(consistency(y, key, pairs), expected)


def test_views_that_agree_reach_the_minimum() -> None:
    maps = torch.randn(3, 4, 3, 3)
    itself = torch.eye(9, dtype=torch.bool).expand(3, -1, -1)
    assert consistency(maps, maps, itself).item() == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_the_power_sharpens_what_propagates(power: float) -> None:
    maps, values = torch.randn(2, 2, 4, 2, 3)
    expected = [
        propagated(m.flatten(1), v.flatten(1), power) for m, v in zip(maps, values, strict=True)
    ]
    found = propagate(maps, values, power)
    torch.testing.assert_close(found.flatten(2), torch.stack(expected))


def test_under_bf16_autocast_similarities_are_as_exact_as_without() -> None:
    maps, values = torch.randn(2, 2, 4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = propagate(maps, values, 2.0)
    assert torch.equal(found, propagate(maps, values, 2.0))


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.99), (50, 0.995), (100, 1.0)])
def test_the_teacher_follows_ever_more_slowly(
    backbone: Backbone, step: int, momentum: float
) -> None:
    module = build(backbone)
    students = [*backbone.parameters(), *module.projector.parameters()]
    before = [p.clone() for p in module.teacher.parameters()]
    module.after_step(Progress(step, 100, 0, 1))
    after = list(module.teacher.parameters())
    assert not any(p.requires_grad for p in after)
    for student, old, new in zip(students, before, after, strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * student)


def test_the_default_options_and_optimizer_are_the_papers() -> None:
    component = installed().find("discriminator", "pixpro")
    options = component.options.model_validate({}).model_dump()
    assert options == {
        "dim": 256,
        "hidden": 4096,
        "momentum": 0.99,
        "reach": 0.7,
        "sharpness": 2.0,
    }
    optimizer = Optimizer(**component.defaults["optimizer"])
    assert (optimizer.name, optimizer.lr, optimizer.lr_batch) == ("lars", 1.0, 256)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 1e-5)
    assert (optimizer.schedule, optimizer.warmup_epochs) == ("cosine", 5)
