"""SimSiam against equation 4 of its paper, written plainly."""

from __future__ import annotations

import pytest
import torch
from methods import Flat, seen
from torch import Tensor, nn

import dira_simsiam
from dira_core import Backbone, Batch, Discriminator, Encodings
from dira_core.nn.resnet import ResNet
from dira_core.optim import base_lr
from dira_core.optimizer_options import Optimizer
from dira_simsiam import SimSiamOptions


def batch(size: int = 5) -> Batch:
    images = torch.rand(2, size, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return seen(*images)


def build(backbone: Backbone, dim: int = 8, hidden: int = 4) -> Discriminator:
    (component,) = dira_simsiam.dira_discriminators()
    module: Discriminator = component.build(SimSiamOptions(dim=dim, hidden=hidden), backbone)
    return module


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(1, keepdim=True).sqrt()


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Flat()


def test_the_loss_is_equation_4_and_its_gradient_stops_at_the_embeddings(
    backbone: Backbone,
) -> None:
    module, given = build(backbone), batch()
    parameters = [*backbone.parameters(), *module.parameters()]
    loss = module(Encodings(backbone, given)).loss
    gradients = torch.autograd.grad(loss, parameters)

    projector, predictor = module.get_submodule("projector"), module.get_submodule("predictor")
    z1, z2 = (projector(backbone(view.image)[-1].mean((2, 3))) for view in given.views)
    constant1, constant2 = torch.tensor(z1.tolist()), torch.tensor(z2.tolist())
    matched = unit(predictor(z1)) * unit(constant2) + unit(predictor(z2)) * unit(constant1)
    expected = -matched.sum(1).mean() / 2
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters))


def test_the_loss_does_not_depend_on_the_order_of_the_views(backbone: Backbone) -> None:
    module, given = build(backbone), batch()
    swapped = Batch(given.views[::-1], given.index)
    torch.testing.assert_close(
        module(Encodings(backbone, given)).loss, module(Encodings(backbone, swapped)).loss
    )


def test_views_that_agree_with_the_predictor_reach_the_minimum(backbone: Backbone) -> None:
    module, given = build(backbone), batch()
    module.register_module("predictor", nn.Identity())
    same = Batch((given.views[0], given.views[0]), given.index)
    assert module(Encodings(backbone, same)).loss.item() == pytest.approx(-1, abs=1e-6)


def test_the_embedding_is_z_of_the_first_view_with_unit_variance(backbone: Backbone) -> None:
    module, given = build(backbone), batch(64)
    z = module(Encodings(backbone, given)).embedding
    assert z is not None
    pooled = backbone(given.views[0].image)[-1].mean((2, 3))
    torch.testing.assert_close(z, module.get_submodule("projector")(pooled))
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(8), atol=0.05, rtol=0)


def test_under_bf16_autocast_the_loss_is_in_float32_and_near(backbone: Backbone) -> None:
    module, given = build(backbone), batch()
    expected = module(Encodings(backbone, given)).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(Encodings(backbone, given)).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=0.1, rtol=0)


@pytest.mark.parametrize(("depth", "features"), [(18, 512), (50, 2048)])
def test_heads_have_the_sizes_of_the_paper_and_follow_the_backbone(
    depth: int, features: int
) -> None:
    with torch.device("meta"):
        module = build(ResNet(depth, 1, zero_init_residual=True), dim=2048, hidden=512)
    projector = features * 2048 + 2 * 2048**2 + 2 * (2 * 2048)  # the last batch norm has none
    predictor = 2048 * 512 + 2 * 512 + 512 * 2048 + 2048
    assert sum(p.numel() for p in module.get_submodule("projector").parameters()) == projector
    assert sum(p.numel() for p in module.get_submodule("predictor").parameters()) == predictor


def test_default_widths_are_those_of_the_paper() -> None:
    assert SimSiamOptions.model_validate({}).model_dump() == {"dim": 2048, "hidden": 512}


def test_every_parameter_is_in_one_group_and_only_the_predictor_keeps_a_constant_rate(
    backbone: Backbone,
) -> None:
    module = build(backbone)
    constant = [g for g in module.param_groups() if g.get("schedule") == "constant"]
    grouped = [id(p) for g in module.param_groups() for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters())
    predictor = module.get_submodule("predictor").parameters()
    assert [id(p) for g in constant for p in g["params"]] == [id(p) for p in predictor]


def test_the_default_optimizer_is_the_papers_at_four_times_its_rate_after_a_warmup() -> None:
    (component,) = dira_simsiam.dira_discriminators()
    optimizer = Optimizer(**component.defaults["optimizer"])
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
    assert base_lr(optimizer, 256) == 4 * 0.05
    assert (optimizer.schedule, optimizer.warmup_epochs) == ("cosine", 1)
