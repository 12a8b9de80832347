"""Losses of critics and their opponents against their formulas."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
from tensors import randn

from dira_core import (
    bce_critic,
    bce_generator,
    hinge_critic,
    hinge_generator,
    lsgan_critic,
    lsgan_generator,
    minimax_generator,
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_critic_losses_are_their_formulas() -> None:
    real, fake = randn(2, 1, 3, 3, seed=1), randn(2, 1, 3, 3, seed=2)
    r, f = real.flatten().tolist(), fake.flatten().tolist()
    lsgan = 0.5 * (fmean([(x - 1) ** 2 for x in r]) + fmean([x**2 for x in f]))
    eq3 = fmean([math.log(sigmoid(x)) for x in r]) + fmean([math.log(1 - sigmoid(x)) for x in f])
    hinge = fmean([max(0, 1 - x) for x in r]) + fmean([max(0, 1 + x) for x in f])
    assert lsgan_critic(real, fake).item() == pytest.approx(lsgan, rel=1e-13)
    assert bce_critic(real, fake).item() == pytest.approx(-eq3, rel=1e-13)
    assert hinge_critic(real, fake).item() == pytest.approx(hinge, rel=1e-13)


def test_generator_losses_are_their_formulas() -> None:
    fake = randn(2, 1, 3, 3, seed=2)
    f = fake.flatten().tolist()
    log_real = fmean([math.log(sigmoid(x)) for x in f])
    log_fake = fmean([math.log(1 - sigmoid(x)) for x in f])
    assert lsgan_generator(fake).item() == pytest.approx(
        fmean([(x - 1) ** 2 for x in f]), rel=1e-13
    )
    assert bce_generator(fake).item() == pytest.approx(-log_real, rel=1e-13)
    assert minimax_generator(fake).item() == pytest.approx(log_fake, rel=1e-13)
    assert hinge_generator(fake).item() == pytest.approx(-fmean(f), rel=1e-13)


def test_generator_and_critic_pull_the_terms_of_equation_3_in_opposite_directions() -> None:
    fake = randn(2, 1, 3, 3).requires_grad_()
    (critic,) = torch.autograd.grad(bce_critic(torch.zeros(2, 1, 3, 3), fake), fake)
    (generator,) = torch.autograd.grad(minimax_generator(fake), fake)
    torch.testing.assert_close(generator, -critic)


def test_only_the_minimax_gradient_vanishes_where_the_critic_is_sure() -> None:
    sure = torch.full((4,), -20.0, requires_grad=True)
    (minimax,) = torch.autograd.grad(minimax_generator(sure), sure)
    (bce,) = torch.autograd.grad(bce_generator(sure), sure)
    torch.testing.assert_close(minimax, torch.full((4,), -sigmoid(-20.0) / 4), atol=0, rtol=1e-5)
    torch.testing.assert_close(bce, torch.full((4,), -sigmoid(20.0) / 4), atol=0, rtol=1e-5)


@pytest.mark.parametrize("score", [-1e4, 1e4])
def test_log_losses_stay_finite_for_extreme_scores(score: float) -> None:
    scores = torch.full((4,), score, requires_grad=True)
    for loss in (bce_critic(scores, scores), bce_generator(scores), minimax_generator(scores)):
        (gradient,) = torch.autograd.grad(loss, scores)
        assert loss.isfinite()
        assert gradient.isfinite().all()
