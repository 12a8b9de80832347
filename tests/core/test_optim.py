"""Learning rates follow their formulas; parameter groups keep their own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dira_core.optim import (
    base_lr,
    build_optimizer,
    gradient_norm,
    like_parameters,
    lr_factor,
    set_lr,
)
from dira_core.recipe import Optimizer
from dira_core.types import Progress


def test_cosine_starts_at_one_halves_in_the_middle_and_ends_at_zero() -> None:
    factors = [lr_factor(step, 101, 0, "cosine") for step in range(102)]
    assert factors[0] == 1
    assert factors[101] == pytest.approx(0, abs=1e-12)
    assert lr_factor(50, 100, 0, "cosine") == pytest.approx(0.5)
    assert factors == sorted(factors, reverse=True)


def test_warmup_is_linear_and_meets_the_cosine() -> None:
    assert [lr_factor(s, 100, 4, "cosine") for s in range(5)] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1]
    )
    plain = 0.5 * (1 + math.cos(math.pi * 46 / 96))
    assert lr_factor(50, 100, 4, "cosine") == pytest.approx(plain)


def test_the_rate_scales_with_the_global_batch() -> None:
    assert base_lr(Optimizer(lr=0.1, lr_batch=256), 64) == pytest.approx(0.025)
    assert base_lr(Optimizer(lr=0.1, lr_batch=None), 64) == pytest.approx(0.1)


def test_a_constant_group_keeps_its_rate_while_the_others_follow_the_schedule() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [
        {"params": a.parameters(), "schedule": "constant", "lr_scale": 10.0, "weight_decay": 0.0},
        {"params": b.parameters()},
    ]
    options = Optimizer(lr=0.1, lr_batch=None)
    optimizer = build_optimizer(groups, options, 1)
    set_lr(optimizer, options, Progress(50, 100, 5, 10))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([1.0, 0.05])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [
        0.0,
        options.weight_decay,
    ]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_every_rule_of_the_recipe_can_be_built_and_steps(name: str) -> None:
    layer = nn.Linear(3, 1)
    before = layer.weight.detach().clone()
    optimizer = build_optimizer([{"params": layer.parameters()}], Optimizer(name=name), 256)
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, layer.weight)


def test_gradient_norm_is_that_of_all_gradients_together() -> None:
    layer = nn.Linear(3, 2)
    assert gradient_norm(layer.parameters()) == 0
    layer(torch.randn(4, 3)).square().sum().backward()
    flat = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient_norm(layer.parameters()), flat.norm())


def test_restored_state_has_the_memory_layout_of_its_parameter() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    held = torch.randn(4, 3, 3, 3)
    optimizer.state[weight]["momentum_buffer"] = held
    like_parameters(optimizer)
    found = optimizer.state[weight]["momentum_buffer"]
    assert found.stride() == weight.stride()
    assert torch.equal(found, held)
