"""BYOL against equations 1 and 2 of its paper, written plainly, and against lightly."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from methods import after_resuming, build, differing, train, views
from torch import Tensor, nn

import dira_byol
from dira_byol import BYOLOptions
from dira_core import Backbone, Batch, Discriminator, Encodings, Progress, Teacher
from dira_core.optim import base_lr
from dira_core.optimizer_options import Optimizer

SMALL = {"dim": 8, "hidden": 12}


def taught(**options: object) -> tuple[Backbone, Discriminator, Teacher]:
    """Build a BYOL whose teacher is not its student."""
    backbone, module = build("byol", **{**SMALL, **options})
    train(backbone, module, 0, 3)
    teacher = module.get_submodule("teacher")
    assert isinstance(teacher, Teacher)
    return backbone, module, teacher


def outputs(
    backbone: Backbone, module: Discriminator, teacher: Teacher, given: Batch
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the predictions of both views, and what the teacher makes of them.

    Its batch norms use the batch at hand, as the paper's do.
    """
    encoder, head = copy.deepcopy(teacher[0]).train(), copy.deepcopy(teacher[1]).train()
    projector, predictor = module.get_submodule("projector"), module.get_submodule("predictor")
    images = [view.image for view in given.views]
    p = [predictor(projector(backbone(image)[-1].mean((2, 3)))) for image in images]
    t = [head(encoder(image)[-1].mean((2, 3))) for image in images]
    return p, [torch.tensor(x.tolist()) for x in t]


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(1, keepdim=True).sqrt()


def trained(*modules: nn.Module) -> list[nn.Parameter]:
    return [p for m in modules for n, p in m.named_parameters() if not n.startswith("teacher")]


@pytest.mark.parametrize("size", [2, 5, 8])
def test_the_loss_is_equation_2_both_ways_and_its_gradient_stops_at_the_teacher(size: int) -> None:
    backbone, module, teacher = taught()
    given, parameters = views(size), trained(backbone, module)
    objective = module(Encodings(backbone, given))
    gradients = torch.autograd.grad(objective.loss, parameters)
    (p1, p2), (t1, t2) = outputs(backbone, module, teacher, given)
    assert objective.embedding is not None
    torch.testing.assert_close(module.get_submodule("predictor")(objective.embedding), p1)
    distances = (unit(p1) - unit(t2)).square().sum(1) + (unit(p2) - unit(t1)).square().sum(1)
    expected = distances.mean()
    torch.testing.assert_close(objective.loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected, parameters), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("size", [2, 7])
def test_the_loss_and_its_gradients_are_those_of_lightly(size: int) -> None:
    cosine = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    backbone, module, teacher = taught()
    given, parameters = views(size), trained(backbone, module)
    ours = module(Encodings(backbone, given)).loss
    (p1, p2), (t1, t2) = outputs(backbone, module, teacher, given)
    theirs = 4 + 2 * (cosine(p1, t2) + cosine(p2, t1))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters),
        torch.autograd.grad(theirs, parameters),
        atol=1e-5,
        rtol=1e-4,
    )


def test_the_loss_does_not_depend_on_the_order_of_the_views() -> None:
    backbone, module, _ = taught()
    given = views(5)
    swapped = Batch(given.views[::-1], given.index)
    torch.testing.assert_close(
        module(Encodings(backbone, given)).loss, module(Encodings(backbone, swapped)).loss
    )


@pytest.mark.parametrize("step", [0, 3, 10])
def test_the_teacher_keeps_more_and_more_of_itself(step: int) -> None:
    backbone, module, teacher = taught(momentum=0.9)
    students = [*backbone.parameters(), *module.get_submodule("projector").parameters()]
    before = [p.clone() for p in teacher.parameters()]
    module.after_step(Progress(step, 10, 0, 1))
    keep = 1 - (1 - 0.9) * (math.cos(math.pi * step / 10) + 1) / 2
    expected = [keep * own + (1 - keep) * p for own, p in zip(before, students, strict=True)]
    torch.testing.assert_close(list(teacher.parameters()), expected)
    moved = [not torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True)]
    assert any(moved) == (step < 10)


def test_the_teacher_is_a_copy_of_backbone_and_projector_and_is_not_trained() -> None:
    backbone, module = build("byol", **SMALL)
    copies = module.get_submodule("teacher.copies")
    student = nn.ModuleList([backbone, module.get_submodule("projector")])
    assert differing(copies.state_dict(), student.state_dict()) == []
    assert not any(p.requires_grad for p in copies.parameters())
    grouped = {id(p) for group in module.param_groups() for p in group["params"]}
    assert grouped == {id(p) for p in trained(module)}


def test_a_resumed_run_goes_on_bit_by_bit() -> None:
    assert after_resuming("byol", **SMALL) == []


def test_the_defaults_are_those_of_the_paper() -> None:
    (component,) = dira_byol.dira_discriminators()
    assert BYOLOptions().model_dump() == {"dim": 256, "hidden": 4096, "momentum": 0.99}
    optimizer = Optimizer(**component.defaults["optimizer"])
    assert (optimizer.name, optimizer.weight_decay, optimizer.decay_1d) == ("lars", 1e-6, False)
    assert base_lr(optimizer, 4096) == pytest.approx(4.8)
    assert (optimizer.schedule, optimizer.warmup_epochs) == ("cosine", 10)
