"""SimCLR against equation 1 of its paper, written plainly, and against lightly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods import (
    Flat,
    after_resuming,
    build,
    loss_and_gradients,
    over_processes,
    train,
    views,
)
from torch import Tensor

import dira_simclr
from dira_core import Encodings, mlp
from dira_core.optim import base_lr
from dira_core.optimizer_options import Optimizer
from dira_simclr import SimCLROptions

SMALL = {"dim": 8, "hidden": 12}


def equation_1(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    z = [*z1, *z2]
    n, terms = len(z1), []
    for i, zi in enumerate(z):
        sim = [torch.exp((zi @ zk) / (zi.norm() * zk.norm()) / temperature) for zk in z]
        others = [s for k, s in enumerate(sim) if k != i]
        terms.append(-torch.log(sim[(i + n) % (2 * n)] / torch.stack(others).sum()))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("size", [2, 5, 8])
def test_the_loss_is_equation_1_and_so_are_its_gradients(size: int) -> None:
    backbone, module = build("simclr", **SMALL)
    parameters, given = [*backbone.parameters(), *module.parameters()], views(size)
    objective = module(Encodings(backbone, given))
    gradients = torch.autograd.grad(objective.loss, parameters)
    projector = module.get_submodule("projector")
    z1, z2 = (projector(backbone(v.image)[-1].mean((2, 3))) for v in given.views)
    expected = equation_1(z1, z2, 0.1)
    torch.testing.assert_close(objective.loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected, parameters), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(objective.embedding, z1)


@pytest.mark.parametrize("size", [2, 7])
def test_the_loss_and_its_gradients_are_those_of_lightly(size: int) -> None:
    loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.5)
    backbone, module = build("simclr", **SMALL, temperature=0.5)
    parameters, given = [*backbone.parameters(), *module.parameters()], views(size)
    ours = module(Encodings(backbone, given)).loss
    projector = module.get_submodule("projector")
    theirs = loss(*(projector(backbone(v.image)[-1].mean((2, 3))) for v in given.views))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters),
        torch.autograd.grad(theirs, parameters),
        atol=1e-5,
        rtol=1e-4,
    )


def test_negatives_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    backbone, module = build("simclr", Flat(), **SMALL)
    module.register_module("projector", mlp([6, 8], norm=False))
    over_processes(loss_and_gradients(backbone, module), views(6), tmp_path)


def test_descending_lowers_the_loss() -> None:
    backbone, module = build("simclr", **SMALL)
    losses = [train(backbone, module, 0, 1)[0] for _ in range(30)]
    assert losses[-1] < losses[0] - 0.3


def test_a_resumed_run_goes_on_bit_by_bit() -> None:
    assert after_resuming("simclr", **SMALL) == []


def test_the_defaults_are_those_of_the_paper() -> None:
    (component,) = dira_simclr.dira_discriminators()
    assert SimCLROptions().model_dump() == {"dim": 128, "hidden": 2048, "temperature": 0.1}
    optimizer = Optimizer(**component.defaults["optimizer"])
    assert (optimizer.name, optimizer.weight_decay, optimizer.decay_1d) == ("lars", 1e-6, False)
    assert base_lr(optimizer, 4096) == pytest.approx(4.8)
    assert (optimizer.schedule, optimizer.warmup_epochs) == ("cosine", 10)
