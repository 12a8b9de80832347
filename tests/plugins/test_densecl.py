"""DenseCL against equations 1 to 4 of its paper, written plainly, and parts against lightly."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from methods import part, seen
from tensors import Largest
from torch import Tensor, nn

from dira_core import (
    Backbone,
    Batch,
    Encodings,
    Progress,
    info_nce,
)
from dira_core.optimizer_options import Optimizer
from dira_core.plugins import installed, make
from dira_core.testing import TinyBackbone, choice
from dira_densecl.densecl import DenseCL, correspondence

T = 0.2


class Shallow(Backbone):
    """One map of 3 x 3 cells from 12 px, with a batch norm."""

    channels, strides, in_channels, dims = (6,), (4,), 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 4, 4)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.norm(self.conv(images)).tanh()]


def batch(index: list[int], size: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(sum(index))
    images = torch.rand(2, len(index), 1, size, size, generator=generator)
    return seen(*images, index=torch.tensor(index))


def build(backbone: Backbone, n_images: int = 40, **options: Any) -> DenseCL:
    chosen = choice("discriminator", "densecl", **{"dim": 5, **options})
    module = make("discriminator", chosen, backbone)
    assert isinstance(module, DenseCL)
    module.prepare(n_images)
    return module


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


class Plain(NamedTuple):
    """What a batch should give: the two losses, and what both queues take in."""

    image: Tensor
    cells: Tensor
    keys: Tensor
    averages: Tensor


def plainly(module: DenseCL, backbone: Backbone, given: Batch) -> Plain:
    """Compute the two losses cell by cell."""
    teacher, queues = module.teacher, (module.queue, module.dense_queue)
    frozen = [q.keys.clone() for q in queues]
    owners: list[int] = module.queue.index.tolist()
    maps = backbone(given.views[0].image)[-1]
    with torch.no_grad():
        key_maps = teacher[0](given.views[1].image)[-1]
        key_heads = teacher[1](key_maps.mean((2, 3))), teacher[2](key_maps)
    heads = module.projector(maps.mean((2, 3))), module.dense_projector(maps)
    places = [(i, j) for i in range(maps.shape[2]) for j in range(maps.shape[3])]
    image: list[Tensor] = []
    cells: list[Tensor] = []
    for b, index in enumerate(given.index.tolist()):
        others = [n for n, owner in enumerate(owners) if owner not in (index, -1)]
        q, k = unit(heads[0][b]), unit(key_heads[0][b])
        image.append(contrast(q, k, [frozen[0][n] for n in others]))
        for i, j in places:
            similar = {
                (u, v): float(unit(maps[b, :, i, j].detach()) @ unit(key_maps[b, :, u, v]))
                for u, v in places
            }
            u, v = max(similar, key=lambda place: similar[place])
            r, t = unit(heads[1][b, :, i, j]), unit(key_heads[1][b, :, u, v])
            cells.append(contrast(r, t, [frozen[1][n] for n in others]))
    keys = torch.stack([unit(k) for k in key_heads[0]])
    averages = torch.stack([unit(k.mean((1, 2))) for k in key_heads[1]])
    return Plain(torch.stack(image).mean(), torch.stack(cells).mean(), keys, averages)


def contrast(query: Tensor, key: Tensor, negatives: list[Tensor]) -> Tensor:
    """Return equation 1 for one query."""
    positive = math.e ** (query @ key / T)
    return -torch.log(positive / (positive + sum(math.e ** (query @ n / T) for n in negatives)))


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Shallow()


@pytest.mark.parametrize(("index", "dense"), [([3, 8], 0.5), ([1, 9, 4, 7, 2], 0.3)])
def test_losses_and_gradients_are_those_of_the_paper(
    backbone: Backbone, index: list[int], dense: float
) -> None:
    module = build(backbone, dense=dense)
    for earlier in ([3, 4, 5], [8, 9, 30, 31]):  # own keys are in the queue, which are left out
        module(Encodings(backbone, batch(earlier)))
    module.after_step(Progress(3, 100, 0, 1))
    given = batch(index)
    expected = plainly(module, backbone, given)
    objective = module(Encodings(backbone, given))

    parameters = [*backbone.parameters(), *(p for p in module.parameters() if p.requires_grad)]
    total = (1 - dense) * expected.image + dense * expected.cells
    torch.testing.assert_close(objective.metrics["image"], expected.image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(objective.metrics["cells"], expected.cells, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(objective.loss, total, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad(objective.loss, parameters)
    reference = torch.autograd.grad(total, parameters)
    torch.testing.assert_close(gradients, reference, atol=1e-5, rtol=1e-4)


def test_queues_take_the_keys_and_the_averaged_cells_in_turn(backbone: Backbone) -> None:
    module = build(backbone, 5)
    module(Encodings(backbone, batch([2, 4, 0])))
    given = batch([1, 3, 2])
    expected = plainly(module, backbone, given)
    module(Encodings(backbone, given))
    places = torch.tensor([3, 4, 0])
    for queue, keys in ((module.queue, expected.keys), (module.dense_queue, expected.averages)):
        torch.testing.assert_close(queue.keys[places], keys)
        assert queue.index.tolist() == [2, 4, 0, 1, 3]
        assert queue.cursor == 1


def test_evaluation_changes_no_buffer_and_returns_a_loss(backbone: Backbone) -> None:
    module = build(backbone)
    module(Encodings(backbone, batch([1, 2, 3])))
    module.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert module(Encodings(backbone.eval(), batch([4, 5]))).loss.isfinite()
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_correspondence_and_its_loss_are_those_of_lightly() -> None:
    lightly = pytest.importorskip("lightly.models.utils")
    ntx = pytest.importorskip("lightly.loss.ntx_ent_loss")
    generator = torch.Generator().manual_seed(0)
    maps, others = torch.randn(2, 3, 7, 4, 4, generator=generator)
    queries, keys = nn.functional.normalize(torch.randn(2, 3, 16, 5, generator=generator), dim=-1)
    flat, other = maps.flatten(2).mT, others.flatten(2).mT
    match = correspondence(maps, others)
    assert torch.equal(match, lightly.most_similar_index(flat, other))
    wide = torch.cat([keys, keys, keys], 2)[..., :7]  # its gather wants as many channels as x
    matched = keys.gather(1, match[..., None].expand(-1, -1, 5))
    torch.testing.assert_close(matched, lightly.select_most_similar(flat, other, wide)[..., :5])

    criterion = ntx.NTXentLoss(temperature=T, memory_bank_size=(32, 5))
    pairs = queries.flatten(0, 1).requires_grad_(), matched.flatten(0, 1)
    criterion(*pairs)  # fills its bank
    bank = criterion.memory_bank.bank.clone()
    theirs = criterion(*pairs)
    ours = info_nce(nn.functional.normalize(pairs[0], dim=1), pairs[1], bank, T)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(loss, pairs[0])[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_own_keys_are_noted_by_image_not_by_cell(backbone: Backbone) -> None:
    n_images, n_cells, size = 4, 36, 3000
    module, given = build(backbone, size), batch([1, 2, 3, 4], 24)
    with Largest(torch.bool) as noted:
        module(Encodings(backbone, given))
    assert n_images * size <= noted.numbers < n_images * n_cells * size


def test_maps_of_unlike_sizes_correspond_too(backbone: Backbone) -> None:
    module, given, smaller = build(backbone), batch([1, 2, 3]), batch([1, 2, 3], 8)
    objective = module(Encodings(backbone, Batch((given.views[0], smaller.views[1]), given.index)))
    assert objective.loss.isfinite()


def test_the_teacher_follows_backbone_and_both_heads_and_is_not_trained(
    backbone: Backbone,
) -> None:
    module = build(backbone)
    students = [backbone, module.projector, module.dense_projector]
    with torch.no_grad():
        for student in students:
            for parameter in student.parameters():
                parameter += 1
    before = [[p.clone() for p in copy.parameters()] for copy in module.teacher.copies]
    module.after_step(Progress(20, 100_000, 0, 1))
    for student, copy, old in zip(students, module.teacher.copies, before, strict=True):
        for s, c, o in zip(student.parameters(), copy.parameters(), old, strict=True):
            torch.testing.assert_close(c, 0.999 * o + 0.001 * s)
            assert not c.requires_grad


def test_no_key_depends_on_the_other_images_of_its_batch(backbone: Backbone) -> None:
    module, given = build(backbone, 6), batch([1, 2, 3])
    module(Encodings(backbone, batch([4, 5, 0])))
    module.after_step(Progress(0, 10, 0, 1))  # statistics are averages from here on
    module(Encodings(backbone, given))
    whole = module.queue.keys[3:].clone(), module.dense_queue.keys[3:].clone()
    module(Encodings(backbone, part(given, slice(1, 2))))
    torch.testing.assert_close(module.queue.keys[0], whole[0][1])
    torch.testing.assert_close(module.dense_queue.keys[0], whole[1][1])


@pytest.mark.parametrize(
    ("n_images", "options", "size"), [(40, {}, 40), (10**6, {}, 65_536), (40, {"queue": 7}, 7)]
)
def test_the_queues_are_bounded_by_the_data(
    backbone: Backbone, n_images: int, options: dict[str, int], size: int
) -> None:
    module = build(backbone, n_images, **options)
    assert [len(q.keys) for q in (module.queue, module.dense_queue)] == [size, size]


def test_heads_have_the_sizes_of_the_paper() -> None:
    module = build(TinyBackbone(), dim=128)
    width = 16
    layers = width * width + width + width * 128 + 128
    for head in (module.projector, module.dense_projector):
        assert sum(p.numel() for p in head.parameters()) == layers


def test_the_default_options_and_optimizer_are_the_papers() -> None:
    component = installed().find("discriminator", "densecl")
    options = component.options.model_validate({}).model_dump()
    assert options == {
        "dim": 128,
        "temperature": 0.2,
        "momentum": 0.999,
        "dense": 0.5,
        "queue": None,
    }
    optimizer = Optimizer(**component.defaults["optimizer"])
    assert (optimizer.name, optimizer.lr, optimizer.lr_batch) == ("sgd", 0.3, 256)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 1e-4)
    assert optimizer.schedule == "cosine"
