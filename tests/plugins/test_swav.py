"""SwAV against equations 2 to 6 of its paper, written plainly, and against lightly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods import (
    Flat,
    NoFeatures,
    after_resuming,
    build,
    loss_and_gradients,
    over_processes,
    train,
    views,
)
from torch import Tensor
from torch.nn import functional as F

import dira_swav
from dira_core import Backbone, Batch, Discriminator, Encodings, Progress, Queue, mlp
from dira_core.build import build_optimizer
from dira_core.optim import base_lr
from dira_core.optimizer_options import Optimizer
from dira_core.testing import half
from dira_core.view_options import Views
from dira_swav import SwAVOptions
from dira_swav.swav import SwAV, cosines, sinkhorn, swapped

SMALL = {
    "dim": 8,
    "hidden": 12,
    "small_views": 2,
    "prototypes": 6,
    "freeze_steps": 0,
    "queue": 12,
    "queue_epoch": 2,
}


def small(**options: object) -> tuple[Backbone, SwAV]:
    backbone, module = build("swav", **{**SMALL, **options})
    assert isinstance(module, SwAV)
    return backbone, module


def embeddings(backbone: Backbone, module: Discriminator, given: Batch) -> list[Tensor]:
    """Return the unit embeddings of every view."""
    pooled = torch.cat([backbone(view.image)[-1].mean((2, 3)) for view in given.views])
    z = module.get_submodule("projector")(pooled)
    return list((z / z.square().sum(1, keepdim=True).sqrt()).chunk(len(given.views)))


def equation_5(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Sinkhorn's algorithm as the paper's listing has it: on the whole matrix (K, N)."""
    q = torch.exp(scores.T / epsilon)
    q = q / q.sum()
    n_prototypes, n_rows = q.shape
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / n_prototypes
        q = q / q.sum(0, keepdim=True) / n_rows
    return (q * n_rows).T


def plain_loss(scores: list[Tensor], codes: list[Tensor]) -> Tensor:
    """Equation 6 with temperature 0.1: every assigned view is predicted from every other."""
    terms = []
    for i, code in enumerate(codes):
        for v, score in enumerate(scores):
            if v != i:
                p = torch.exp(score / 0.1) / torch.exp(score / 0.1).sum(1, keepdim=True)
                terms.append(-(code * torch.log(p)).sum(1).mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("size", [2, 5, 8])
def test_the_loss_is_equation_6_and_so_are_its_gradients(size: int) -> None:
    backbone, module = small()
    given = views(size, 4, small=8)
    parameters = [*backbone.parameters(), *module.parameters()]
    objective = module(Encodings(backbone, given))
    gradients = torch.autograd.grad(objective.loss, parameters)
    unit = embeddings(backbone, module, given)
    assert objective.embedding is not None
    torch.testing.assert_close(F.normalize(objective.embedding), unit[0])
    scores = [z @ module.prototypes.T for z in unit]
    codes = [equation_5(torch.tensor(score.tolist()), 0.05, 3) for score in scores[:2]]
    expected = plain_loss(scores, codes)
    torch.testing.assert_close(objective.loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected, parameters), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(("size", "steps"), [(2, 0), (7, 0), (5, 5)])
def test_the_loss_and_its_gradients_are_those_of_lightly_with_and_without_queue(
    size: int, steps: int
) -> None:
    loss = pytest.importorskip("lightly.loss").SwaVLoss()
    backbone, module = small()
    train(backbone, module, 0, steps)
    queue = module.queue
    assert queue is not None
    given = views(size, 4, small=8)
    parameters = [*backbone.parameters(), *module.parameters()]
    held = [keys.clone() for keys in queue.keys.chunk(2, dim=1)]  # before the batch is pushed
    ours = module(Encodings(backbone, given)).loss
    scores = [z @ module.prototypes.T for z in embeddings(backbone, module, given)]
    earlier = [keys @ module.prototypes.T for keys in held] if steps else None
    theirs = loss(scores[:2], scores[2:], earlier).squeeze()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(ours, parameters),
        torch.autograd.grad(theirs, parameters),
        atol=1e-5,
        rtol=1e-4,
    )


def test_codes_are_those_of_the_papers_listing() -> None:
    scores = 2 * torch.rand(7, 5, dtype=torch.float64) - 1
    for iterations in (1, 3):
        torch.testing.assert_close(
            sinkhorn(scores, 0.05, iterations), equation_5(scores, 0.05, iterations)
        )


def test_every_row_is_shared_out_and_in_the_limit_every_prototype_gets_as_much() -> None:
    torch.manual_seed(0)
    scores = 2 * torch.rand(12, 5, dtype=torch.float64) - 1
    few, many = sinkhorn(scores, 0.3, 3), sinkhorn(scores, 0.3, 200)
    for codes in (few, many):
        torch.testing.assert_close(codes.sum(1), torch.ones(12, dtype=torch.float64))
        assert bool((codes >= 0).all())
    torch.testing.assert_close(many.sum(0), torch.full((5,), 12 / 5, dtype=torch.float64))


def test_codes_are_finite_at_the_smallest_softness_for_the_unlikeliest_scores() -> None:
    scores = torch.full((4, 3), -1.0)
    scores[0, 0] = 1.0
    codes = sinkhorn(scores, 0.025, 3)
    assert bool(codes.isfinite().all())
    torch.testing.assert_close(codes.sum(1), torch.ones(4))
    torch.testing.assert_close(codes, sinkhorn(scores.double(), 0.025, 3).float())


def test_under_autocast_scores_codes_and_loss_are_those_of_float32() -> None:
    torch.manual_seed(0)
    unit, prototypes = F.normalize(torch.randn(3, 6, 8), dim=2), F.normalize(torch.randn(5, 8))

    def steps() -> list[Tensor]:
        scores = cosines(unit, prototypes)
        codes = sinkhorn(scores[0], 0.05, 3)
        return [scores, codes, swapped(scores, codes[None], 0.1)]

    expected = steps()
    with half():
        found = steps()
        rounded = sinkhorn(expected[0][0].bfloat16(), 0.05, 3).sum(1)
    assert all(map(torch.equal, found, expected))
    torch.testing.assert_close(rounded, torch.ones(6))


def test_predictions_that_are_the_codes_cost_their_entropy() -> None:
    code = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    scores = (0.1 * code.log()).expand(3, -1, -1)
    entropy = -(code * code.log()).sum(1).mean()
    torch.testing.assert_close(swapped(scores, code.expand(2, -1, -1), 0.1), entropy)


def test_the_queue_is_used_from_its_epoch_on_and_without_its_empty_rows() -> None:
    backbone, module = small(queue=40)
    train(backbone, module, 0, 3)  # 15 of 40 rows
    queue, given = module.eval().queue, views(5, 4, seed=7, small=8)
    assert queue is not None

    def loss(epoch: int) -> Tensor:
        module.epoch_started(Progress(2 * epoch, 8, epoch, 4), NoFeatures())
        value: Tensor = module(Encodings(backbone, given)).loss
        return value.detach()

    before, since = loss(1), loss(2)
    assert not torch.equal(before, since)
    queue.keys[15:] = torch.randn(25, 16)
    assert torch.equal(loss(2), since)
    queue.keys[:15] = torch.randn(15, 16)
    assert not torch.equal(loss(2), since)
    assert torch.equal(loss(1), before)


def test_the_queue_holds_both_assigned_views_of_an_image_and_whose_they_are() -> None:
    backbone, module = small()
    given = views(5, 4, small=8)
    module(Encodings(backbone, given))
    queue = module.queue
    assert queue is not None
    expected = torch.cat(embeddings(backbone, module, given)[:2], dim=1)
    torch.testing.assert_close(queue.keys[:5], expected)
    assert queue.index.tolist() == [*given.index.tolist(), *[-1] * 7]


def test_prototypes_are_unit_vectors_that_rest_until_they_are_trained() -> None:
    backbone, module = small(freeze_steps=3)
    start = module.prototypes.detach().clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(6))
    train(backbone, module, 0, 3)
    torch.testing.assert_close(module.prototypes.detach(), start)
    train(backbone, module, 3, 4)
    assert (module.prototypes - start).abs().max() > 1e-3
    torch.testing.assert_close(module.prototypes.detach().norm(dim=1), torch.ones(6))


def test_no_optimizer_moves_resting_prototypes() -> None:
    (component,) = dira_swav.dira_discriminators()
    backbone, module = small(freeze_steps=3)
    start = module.prototypes.detach().clone()
    optimizer = build_optimizer(
        module.param_groups(), Optimizer(**component.defaults["optimizer"]), 256
    )
    module(Encodings(backbone, views(5, 4))).loss.backward()
    optimizer.step()
    assert torch.equal(module.prototypes.detach(), start)


def test_prototypes_and_queue_follow_the_number_of_images() -> None:
    sizes = {}
    for n_images in (5, 300, 100_000):
        _, module = build("swav", n_images=n_images, dim=4, hidden=4)
        assert isinstance(module, SwAV)
        assert isinstance(module.queue, Queue)
        sizes[n_images] = (len(module.prototypes), len(module.queue.keys))
    assert sizes == {5: (2, 5), 300: (30, 300), 100_000: (3000, 3840)}
    assert small(queue=0)[1].queue is None


def test_without_a_queue_nothing_is_kept() -> None:
    backbone, module = small(queue=0, queue_epoch=0)
    train(backbone, module, 0, 2)
    assert dict(module.named_buffers()).keys() >= {"step", "epoch"}
    assert "queue.keys" not in module.state_dict()


def test_assignments_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    backbone, module = build("swav", Flat(), **{**SMALL, "queue_epoch": 0})
    module.register_module("projector", mlp([6, 8], norm=False))
    step = loss_and_gradients(backbone, module)

    def work(batch: Batch) -> dict[str, Tensor]:
        module(Encodings(backbone, batch))  # fills the queue
        return {**step(batch), "keys": module.get_buffer("queue.keys").clone()}

    over_processes(work, views(6, 4, small=8), tmp_path)


def test_descending_lowers_the_loss() -> None:
    backbone, module = small(queue=0)
    losses = [train(backbone, module, 0, 1)[0] for _ in range(60)]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("queue", [0, 12])
def test_a_resumed_run_goes_on_bit_by_bit(queue: int) -> None:
    assert (
        after_resuming("swav", **{**SMALL, "queue": queue, "freeze_steps": 4, "queue_epoch": 1})
        == []
    )


def test_the_defaults_are_those_of_the_public_code() -> None:
    (component,) = dira_swav.dira_discriminators()
    options = SwAVOptions()
    assert (options.prototypes, options.epsilon, options.iterations) == (3000, 0.05, 3)
    assert (options.temperature, options.dim, options.hidden) == (0.1, 128, 2048)
    assert (options.freeze_steps, options.queue, options.queue_epoch) == (313, 3840, 15)
    optimizer = Optimizer(**component.defaults["optimizer"])
    assert (optimizer.name, optimizer.weight_decay, optimizer.floor) == ("lars", 1e-6, 0.001)
    assert base_lr(optimizer, 256) == pytest.approx(0.6)
    assert base_lr(optimizer, 4096) == pytest.approx(4.8)
    assert optimizer.warmup_epochs == 10


def test_the_default_crops_are_two_large_ones_and_six_small_ones() -> None:
    (component,) = dira_swav.dira_discriminators()
    chosen = Views(size=224, **component.defaults["views"])
    assert [chosen.of(view).size for view in range(8)] == [224] * 2 + [96] * 6
    assert [chosen.of(view).scale for view in (0, 1, 2, 7)] == [(0.14, 1.0)] * 2 + [
        (0.05, 0.14)
    ] * 2
    assert sum(override.repeat for override in chosen.each) == SwAVOptions().small_views + 2
