"""Barlow Twins against equation 1 of its paper, written plainly, and against lightly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from methods import Flat, part, seen
from torch import Tensor, nn
from world import WORLD, together

import dira_barlow
from dira_barlow import BarlowOptions
from dira_core import Backbone, Batch, Discriminator, Encodings
from dira_core.nn.resnet import ResNet
from dira_core.optim import base_lr
from dira_core.optimizer_options import Optimizer

LAMBD = 0.02
DIMS = pytest.mark.parametrize("dim", [4, 24])  # fewer and more than the images of a batch
SIZES = pytest.mark.parametrize("size", [2, 5, 9])


def batch(size: int = 9) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, size, 1, 4, 4, generator=generator)
    images = images + 0.5 * torch.randn(2, size, 1, 4, 4, generator=generator)
    return seen(*images)


def build(backbone: Backbone, **options: Any) -> Discriminator:
    (component,) = dira_barlow.dira_discriminators()
    options = {"dim": 24, "lambd": LAMBD, "scale": 1.0, **options}
    module: Discriminator = component.build(BarlowOptions(**options), backbone)
    return module


def normalised(z: Tensor) -> Tensor:
    """As the batch norm of the public code does."""
    return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()


def equation_1(z1: Tensor, z2: Tensor) -> Tensor:
    z1, z2 = normalised(z1), normalised(z2)
    terms = []
    for i in range(z1.shape[1]):
        c = (z1[:, i : i + 1] * z2).mean(0)
        redundancy = c.square().sum() - c[i].square()
        terms.append((1 - c[i]).square() + LAMBD * redundancy)
    return torch.stack(terms).sum()


def embed(backbone: Backbone, module: Discriminator, images: Tensor) -> Tensor:
    z: Tensor = module.get_submodule("projector")(backbone(images)[-1].mean((2, 3)))
    return z


def gradients(loss: Tensor, *modules: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [p for module in modules for p in module.parameters()])


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Flat()


@SIZES
@DIMS
def test_the_loss_is_equation_1(backbone: Backbone, size: int, dim: int) -> None:
    module, given = build(backbone, dim=dim), batch(size)
    loss = module(Encodings(backbone, given)).loss
    expected = equation_1(*(embed(backbone, module, view.image) for view in given.views))
    same(loss, expected, backbone, module)


@SIZES
@DIMS
def test_the_loss_is_that_of_lightly(backbone: Backbone, size: int, dim: int) -> None:
    oracle = pytest.importorskip("lightly.loss").BarlowTwinsLoss(lambda_param=LAMBD)
    module, given = build(backbone, dim=dim), batch(size)
    loss = module(Encodings(backbone, given)).loss
    expected = oracle(*(embed(backbone, module, view.image) for view in given.views))
    same(loss, expected, backbone, module)


def same(loss: Tensor, expected: Tensor, backbone: Backbone, module: Discriminator) -> None:
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    ours, theirs = gradients(loss, backbone, module), gradients(expected, backbone, module)
    largest = max(float(g.abs().max()) for g in theirs)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5 * max(1, largest), rtol=1e-5)


def test_the_scale_multiplies_loss_and_gradient(backbone: Backbone) -> None:
    module, scaled = build(backbone), build(backbone, scale=0.024)
    scaled.load_state_dict(module.state_dict())
    losses = [m(Encodings(backbone, batch())).loss for m in (module, scaled)]
    torch.testing.assert_close(losses[1], 0.024 * losses[0])
    (plain,), (small,) = (torch.autograd.grad(x, [backbone.conv.weight]) for x in losses)
    torch.testing.assert_close(small, 0.024 * plain)


def test_the_loss_does_not_depend_on_the_order_of_the_views(backbone: Backbone) -> None:
    module, given = build(backbone), batch()
    swapped = Batch(given.views[::-1], given.index)
    torch.testing.assert_close(
        module(Encodings(backbone, given)).loss, module(Encodings(backbone, swapped)).loss
    )


def test_two_processes_are_one_with_the_global_batch(tmp_path: Path) -> None:
    def step(rank: int | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        backbone = Flat()
        module = build(backbone)
        module.register_module("projector", nn.Linear(6, 24, bias=False))  # without norms
        whole = batch(10)
        pick = slice(None) if rank is None else slice(5 * rank, 5 * rank + 5)
        loss = module(Encodings(backbone, part(whole, pick))).loss
        found = torch.cat([g.flatten() for g in gradients(loss, backbone, module)])
        return {"loss": loss, "gradient": found}

    parts, whole = together(tmp_path, step), step(None)
    for one in parts:
        torch.testing.assert_close(one["loss"], whole["loss"].detach())
    mean = torch.stack([one["gradient"] for one in parts]).sum(0) / WORLD
    torch.testing.assert_close(mean, whole["gradient"], atol=1e-4, rtol=1e-5)


def test_under_bf16_autocast_the_loss_is_in_float32_and_near(backbone: Backbone) -> None:
    module = build(backbone)
    expected = module(Encodings(backbone, batch())).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(Encodings(backbone, batch())).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=0, rtol=0.1)


def test_the_embedding_is_z_of_the_first_view(backbone: Backbone) -> None:
    module, given = build(backbone), batch()
    z = module(Encodings(backbone, given)).embedding
    torch.testing.assert_close(z, embed(backbone, module, given.views[0].image))


@pytest.mark.parametrize(("depth", "features"), [(18, 512), (50, 2048)])
def test_the_projector_has_the_sizes_of_the_paper_and_follows_the_backbone(
    depth: int, features: int
) -> None:
    with torch.device("meta"):
        module = build(ResNet(depth, 1, zero_init_residual=True), dim=8192)
    projector = module.get_submodule("projector")
    shapes = [tuple(p.shape) for p in projector.parameters()]
    between = [(8192,), (8192,)]  # scale and shift of a norm; no linear layer has a bias
    assert shapes == [(8192, features), *between, (8192, 8192), *between, (8192, 8192)]
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in projector.children()] == [*kinds, *kinds, nn.Linear]


def test_default_options_are_those_of_the_paper() -> None:
    options = BarlowOptions.model_validate({})
    assert options.model_dump() == {"dim": 8192, "lambd": 0.0051, "scale": 0.024}


@pytest.mark.parametrize(
    ("global_batch", "rate"), [(128, 0.7), (256, 0.4), (512, 0.3), (1024, 0.25), (2048, 0.2)]
)
def test_the_default_optimizer_is_that_of_the_authors(global_batch: int, rate: float) -> None:
    (component,) = dira_barlow.dira_discriminators()
    optimizer = Optimizer(**component.defaults["optimizer"])
    scale = BarlowOptions.model_validate({}).scale
    assert base_lr(optimizer, global_batch) == pytest.approx(rate * global_batch / 256)
    # what the public code's rate of 0.0048 does to norms and biases, the loss's scale does here
    assert rate != 0.2 or rate * scale * optimizer.scale_1d == pytest.approx(0.0048)
    assert (optimizer.name, optimizer.momentum, optimizer.trust) == ("lars", 0.9, 1e-3)
    assert (optimizer.weight_decay, optimizer.decay_1d) == (1e-6, False)
    assert (optimizer.schedule, optimizer.warmup_epochs, optimizer.floor) == ("cosine", 10, 0.001)
