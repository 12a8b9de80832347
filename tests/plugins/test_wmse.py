"""W-MSE against its definition, written plainly, and against lightly."""

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

import dira_wmse
from dira_core import Batch, Encodings, mlp
from dira_core.optimizer_options import Optimizer
from dira_core.testing import half
from dira_wmse import WMSEOptions
from dira_wmse.wmse import w_mse, whiten, whiten_groups

SMALL = {"dim": 4, "hidden": 12}


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(shape[-1], shape[-1], generator=generator, dtype=torch.float64)
    return torch.randn(shape, generator=generator, dtype=torch.float64) @ mixed + 3


def plain_whitening(v: Tensor) -> Tensor:
    """W (v - mean) with W the inverse of the Cholesky factor of the covariance."""
    centred = v - v.mean(0)
    factor = torch.linalg.cholesky(centred.T @ centred / (len(v) - 1))
    return (torch.linalg.inv(factor) @ centred.T).T


def plain_distance(z1: Tensor, z2: Tensor) -> Tensor:
    unit1, unit2 = (z / z.square().sum(1, keepdim=True).sqrt() for z in (z1, z2))
    return (unit1 - unit2).square().sum(1).mean()


@pytest.mark.parametrize("n_rows", [6, 9, 40])
def test_white_vectors_have_mean_0_and_covariance_1(n_rows: int) -> None:
    white = whiten(random(n_rows, 3), 0.0)
    torch.testing.assert_close(white.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(white.T @ white / (n_rows - 1), torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(white, plain_whitening(random(n_rows, 3)))


def test_the_gradient_of_whitening_is_that_of_finite_differences() -> None:
    v = random(7, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: whiten(x, 1e-3), v)


@pytest.mark.parametrize(("batch", "iterations"), [(8, 1), (16, 1), (24, 3)])
def test_the_loss_and_its_gradient_are_those_of_lightly(batch: int, iterations: int) -> None:
    loss = pytest.importorskip("lightly.loss.wmse_loss").WMSELoss(
        embedding_dim=4, w_size=8, w_iter=iterations, track_running_stats=False
    )
    z = random(2, batch, 4).float().requires_grad_()
    torch.manual_seed(1)
    ours = w_mse(z, iterations, 0.0)
    torch.manual_seed(1)  # both cut the batch by one permutation an iteration
    theirs = loss(z.flatten(0, 1))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    (expected,) = torch.autograd.grad(theirs, z)
    torch.testing.assert_close(torch.autograd.grad(ours, z), (expected,), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch", [8, 13, 15])
def test_the_loss_of_one_slice_is_the_distance_of_white_unit_vectors(batch: int) -> None:
    backbone, module = build("wmse", **SMALL, epsilon=0.0)
    parameters, given = [*backbone.parameters(), *module.parameters()], views(batch)
    objective = module(Encodings(backbone, given))
    gradients = torch.autograd.grad(objective.loss, parameters)
    pooled = torch.cat([backbone(view.image)[-1].mean((2, 3)) for view in given.views])
    v1, v2 = module.get_submodule("projector")(pooled).double().chunk(2)
    torch.testing.assert_close(objective.embedding, v1.float())
    expected = plain_distance(plain_whitening(v1), plain_whitening(v2)).float()
    torch.testing.assert_close(objective.loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected, parameters), atol=1e-5, rtol=1e-3
    )


def test_slices_of_an_odd_batch_have_at_least_two_rows_a_dimension() -> None:
    z = random(2, 19, 4)
    torch.manual_seed(1)
    loss = w_mse(z, 1, 0.0)
    torch.manual_seed(1)
    order = torch.randperm(19)
    rows = [order[:10], order[10:]]
    v1, v2 = (torch.cat([plain_whitening(v[own]) for own in rows]) for v in z)
    torch.testing.assert_close(loss, plain_distance(v1, v2))


def test_a_batch_of_two_is_compared_by_the_signs_of_its_differences() -> None:
    v1, v2 = random(2, 2, 5)
    agree = ((v1[0] > v1[1]) == (v2[0] > v2[1])).double().mean()
    expected = 2 - 2 * (2 * agree - 1)
    torch.testing.assert_close(w_mse(torch.stack([v1, v2]), 1, 0.0), expected)


@pytest.mark.parametrize("n_rows", [2, 3, 5, 6, 7, 15])
def test_a_small_batch_is_whitened_in_groups_of_at_most_half_its_rows(n_rows: int) -> None:
    z = random(2, n_rows, 8)
    torch.manual_seed(1)
    white = whiten_groups(z, 0.0)
    torch.manual_seed(1)
    groups = torch.randperm(8).tensor_split(-(-8 // (n_rows // 2)))
    assert max(map(len, groups)) <= n_rows // 2
    expected = torch.cat([plain_whitening(z[1][:, group]) for group in groups], dim=1)
    torch.testing.assert_close(white[1], expected)


def test_whitening_does_not_see_the_scale_and_offset_of_a_dimension() -> None:
    z = random(2, 9, 3)
    changed = z * torch.tensor([0.1, 5.0, 30.0], dtype=torch.float64) - 2
    torch.testing.assert_close(w_mse(changed, 1, 0.0), w_mse(z, 1, 0.0))


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_embeddings_in_one_direction_give_a_finite_loss_and_gradient(scale: float) -> None:
    v = scale * torch.randn(2, 32, 1) * torch.ones(16)
    v.requires_grad_()
    loss = w_mse(v, 1, WMSEOptions().epsilon)
    (gradient,) = torch.autograd.grad(loss, v)
    assert bool(loss.isfinite())
    assert bool(gradient.isfinite().all())


def test_embeddings_that_are_not_finite_give_such_a_loss_and_no_error() -> None:
    z = random(2, 16, 4)
    z[0, 3, 2] = torch.nan
    assert bool(w_mse(z, 1, 1e-4).isnan())


def test_under_autocast_whitening_is_that_of_float32() -> None:
    z = random(2, 9, 4).bfloat16()
    expected = w_mse(z.float(), 1, 1e-4)
    with half():
        loss = w_mse(z, 1, 1e-4)
    assert torch.equal(loss, expected)


def test_the_default_ridge_hardly_shows() -> None:
    white = whiten(torch.randn(128, 64, generator=torch.Generator().manual_seed(0)), 1e-4)
    covariance = white.T @ white / 127
    torch.testing.assert_close(covariance, torch.eye(64), atol=0.01, rtol=0)


def test_whitening_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    backbone, module = build("wmse", Flat(), dim=4, hidden=4)
    module.register_module("projector", mlp([6, 4], norm=False))
    step = loss_and_gradients(backbone, module)

    def work(batch: Batch) -> dict[str, Tensor]:
        torch.manual_seed(3)
        return step(batch)

    over_processes(work, views(12), tmp_path)


def test_descending_lowers_the_loss() -> None:
    backbone, module = build("wmse", **SMALL)
    losses = [train(backbone, module, 0, 1)[0] for _ in range(30)]
    assert losses[-1] < losses[0] - 0.3


def test_a_resumed_run_goes_on_bit_by_bit() -> None:
    assert after_resuming("wmse", **SMALL) == []


def test_the_defaults_are_those_of_the_paper_but_for_the_ridge() -> None:
    (component,) = dira_wmse.dira_discriminators()
    options = WMSEOptions()
    assert (options.dim, options.hidden, options.iterations) == (64, 1024, 1)
    optimizer = Optimizer(**component.defaults["optimizer"])
    assert (optimizer.name, optimizer.lr, optimizer.lr_batch) == ("adam", 1e-3, None)
    assert optimizer.weight_decay == 1e-6
