"""Learning rates follow their formulas; parameter groups keep their own."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import nn

from dira_core.lars import LARS
from dira_core.optim import (
    base_lr,
    build_optimizer,
    gradient_norm,
    like_parameters,
    lr_factor,
    set_lr,
    tabled_lr,
)
from dira_core.optimizer_options import Optimizer
from dira_core.optimizer_state import flatten_optimizer, unflatten_optimizer
from dira_core.types import Progress

BARLOW_TWINS = {128: 0.7, 256: 0.4, 512: 0.3, 1024: 0.25, 2048: 0.2}
"""Published rates by batch, each still to be multiplied with batch / 256."""


def factors(options: Optimizer, epochs: int, steps_per_epoch: int) -> list[float]:
    """Return the factor at every step of a run, and after its last one."""
    total = epochs * steps_per_epoch
    steps = range(total + 1)
    return [lr_factor(Progress(s, total, s // steps_per_epoch, epochs), options) for s in steps]


def test_cosine_starts_at_one_halves_in_the_middle_and_ends_at_zero() -> None:
    found = factors(Optimizer(schedule="cosine"), 10, 10)
    assert found[0] == 1
    assert found[100] == pytest.approx(0, abs=1e-12)
    assert found[50] == pytest.approx(0.5)
    assert found == sorted(found, reverse=True)


def test_warmup_is_linear_and_meets_the_cosine() -> None:
    found = factors(Optimizer(warmup_epochs=0.4), 10, 10)
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert found[50] == pytest.approx(0.5 * (1 + math.cos(math.pi * 46 / 96)))


def test_a_floor_is_what_the_cosine_goes_down_to() -> None:
    """The public code of Barlow Twins: base q + base 0.001 (1 - q)."""
    plain, above = (factors(Optimizer(floor=floor), 4, 5) for floor in (0.0, 0.001))
    assert above == pytest.approx([q + 0.001 * (1 - q) for q in plain])
    assert (above[0], above[-1]) == (1, pytest.approx(0.001))
    assert set(factors(Optimizer(floor=1.0), 4, 5)) == {1}


def test_an_epoch_cosine_is_the_cosine_of_whole_epochs() -> None:
    """The public code of MoCo: 0.5 (1 + cos(pi epoch / epochs)), set when an epoch starts."""
    found = factors(Optimizer(schedule="epoch-cosine"), 8, 3)[:-1]
    published = [0.5 * (1 + math.cos(math.pi * epoch / 8)) for epoch in range(8)]
    assert found == pytest.approx([factor for factor in published for _ in range(3)])


def test_an_epoch_cosine_starts_after_the_warmup_which_goes_by_step() -> None:
    found = factors(Optimizer(schedule="epoch-cosine", warmup_epochs=1.5), 6, 4)[:-1]
    assert found[:6] == pytest.approx([n / 6 for n in range(1, 7)])
    assert found[6:8] == [1, 1]
    # the cosine begins at step 6 of 24; the epochs after it at steps 8, 12, 16 and 20
    later = [0.5 * (1 + math.cos(math.pi * (step - 6) / 18)) for step in (8, 12, 16, 20)]
    assert found[8:] == pytest.approx([factor for factor in later for _ in range(4)])


def test_halving_is_torchs_step_schedule_after_a_warmup() -> None:
    found = factors(Optimizer(schedule="halving", half_life=2), 6, 3)[:-1]
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([weight], 1.0)
    published = torch.optim.lr_scheduler.StepLR(sgd, 2, 0.5)
    expected = []
    for _ in range(6):
        expected += [sgd.param_groups[0]["lr"]] * 3
        sgd.step()
        published.step()
    assert found == pytest.approx(expected)
    warm = factors(Optimizer(schedule="halving", half_life=2, warmup_epochs=1), 6, 3)[:-1]
    assert warm[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert warm[3:] == found[3:]


def test_a_constant_schedule_stays_at_one_after_the_warmup() -> None:
    found = factors(Optimizer(schedule="constant", warmup_epochs=1, floor=0.1), 4, 2)
    assert found == [0.5, 1, 1, 1, 1, 1, 1, 1, 1]


def test_a_warmup_takes_at_most_a_quarter_of_a_run() -> None:
    found = factors(Optimizer(schedule="constant", warmup_epochs=10), 4, 4)
    assert found[:4] == [0.25, 0.5, 0.75, 1]
    assert set(found[4:]) == {1}


def test_the_rate_scales_with_the_global_batch() -> None:
    assert base_lr(Optimizer(lr=0.1, lr_batch=256), 64) == pytest.approx(0.025)
    assert base_lr(Optimizer(lr=0.1, lr_batch=None), 64) == pytest.approx(0.1)


@pytest.mark.parametrize("batch", BARLOW_TWINS)
def test_a_table_gives_its_entries_and_the_linear_rule_goes_on_top(batch: int) -> None:
    lr = BARLOW_TWINS[batch]
    assert base_lr(Optimizer(lr=BARLOW_TWINS, lr_batch=None), batch) == lr
    assert base_lr(Optimizer(lr=BARLOW_TWINS), batch) == pytest.approx(lr * batch / 256)


def test_a_table_is_linear_in_log2_between_entries_and_constant_beyond() -> None:
    table = {1024: 0.2, 64: 0.8, 128: 0.4}  # in any order
    assert tabled_lr(table, 512) == pytest.approx(0.4 + (0.2 - 0.4) * 2 / 3)
    assert tabled_lr(table, 96) == pytest.approx(0.8 - 0.4 * math.log2(96 / 64))
    assert [tabled_lr(table, batch) for batch in (1, 63, 1025, 10**6)] == [0.8, 0.8, 0.2, 0.2]


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


def network(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, bias=False))
    return net.to(memory_format=torch.channels_last)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()


def build(net: nn.Module, **options: Any) -> torch.optim.Optimizer:
    chosen = Optimizer(**{"lr": 0.1, "lr_batch": None, "weight_decay": 0.01} | options)
    return build_optimizer([{"params": net.parameters()}], chosen, 1)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_by_default_a_rule_is_torchs_own_over_the_groups_as_given(name: str) -> None:
    net, other = network(), network()
    optimizer = build(net, name=name, momentum=0.8, betas=(0.5, 0.9))
    common: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01, "fused": True}
    theirs: dict[str, torch.optim.Optimizer] = {
        "sgd": torch.optim.SGD(other.parameters(), momentum=0.8, **common),
        "adam": torch.optim.Adam(other.parameters(), betas=(0.5, 0.9), **common),
        "adamw": torch.optim.AdamW(other.parameters(), betas=(0.5, 0.9), **common),
    }
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]
    train(net, optimizer, range(3))
    train(other, theirs[name], range(3))
    assert same(net, other)


def test_lars_neither_adapts_nor_decays_norms_and_biases() -> None:
    net, other = network(), network()
    optimizer = build(net, name="lars", momentum=0.8, trust=0.02, scale_1d=0.5)
    vectors = [p for p in other.parameters() if p.dim() == 1]
    kernels = [p for p in other.parameters() if p.dim() > 1]
    groups: list[dict[str, Any]] = [
        {"params": vectors, "adapt": False, "lr": 0.05},
        {"params": kernels},
    ]
    train(net, optimizer, range(3))
    train(other, LARS(groups, 0.1, 0.8, 0.01, 0.02), range(3))
    assert same(net, other)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(5, 0.1, 0.01)]),
        ({"decay_1d": False}, [(3, 0.1, 0.0), (2, 0.1, 0.01)]),
        ({"scale_1d": 0.25}, [(3, 0.025, 0.01), (2, 0.1, 0.01)]),
        ({"scale_1d": 0.25, "decay_1d": False}, [(3, 0.025, 0.0), (2, 0.1, 0.01)]),
        ({"name": "lars"}, [(3, 0.1, 0.0), (2, 0.1, 0.01)]),
    ],
)
def test_norms_and_biases_are_a_group_of_their_own_only_where_it_matters(
    options: dict[str, Any], expected: list[tuple[int, float, float]]
) -> None:
    optimizer = build(network(), **options)
    found = [(len(g["params"]), g["base_lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == expected


def test_both_parts_of_a_group_keep_what_the_group_says() -> None:
    """Order: group by group, norms and biases first, so that the last rate is the model's own."""
    groups = [
        {
            "params": nn.Linear(2, 2).parameters(),
            "schedule": "constant",
            "lr_scale": 10.0,
            "weight_decay": 0.5,
        },
        {"params": [nn.Parameter(torch.ones(3))]},
        {"params": nn.Linear(3, 3).parameters()},
    ]
    options = Optimizer(lr=0.1, lr_batch=None, weight_decay=0.1, decay_1d=False, scale_1d=0.5)
    optimizer = build_optimizer(groups, options, 1)
    set_lr(optimizer, options, Progress(50, 100, 5, 10))
    found = [
        (g["params"][0].dim(), g["lr"], g["weight_decay"], g["schedule"])
        for g in optimizer.param_groups
    ]
    assert found == [
        (1, pytest.approx(0.5), 0.0, "constant"),
        (2, pytest.approx(1.0), 0.5, "constant"),
        (1, pytest.approx(0.025), 0.0, "run"),
        (1, pytest.approx(0.025), 0.0, "run"),
        (2, pytest.approx(0.05), 0.1, "run"),
    ]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_training_goes_on_bit_for_bit_from_what_a_checkpoint_holds(name: str) -> None:
    options: dict[str, Any] = {"name": name, "decay_1d": False, "scale_1d": 0.1}
    net, resumed = network(), network(seed=2)
    optimizer = build(net, **options)
    train(net, optimizer, range(3))
    tensors, rest = flatten_optimizer(copy.deepcopy(optimizer.state_dict()))
    # files hold tensors in the standard layout, and everything else as JSON
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    resumed.load_state_dict(net.state_dict())
    again = build(resumed, **options)
    again.load_state_dict(unflatten_optimizer(tensors, json.loads(json.dumps(rest))))
    like_parameters(again)
    train(net, optimizer, range(3, 6))
    train(resumed, again, range(3, 6))
    assert same(net, resumed)


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
