"""Losses against their formulas in float64, finite differences, and float32 under autocast."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dira_core import (
    bce_critic,
    bce_generator,
    hinge_critic,
    hinge_generator,
    in_float32,
    lsgan_critic,
    lsgan_generator,
    mean_absolute,
    mean_squared,
    minimax_generator,
    negative_cosine,
)

PAIR_LOSSES = [
    negative_cosine,
    mean_squared,
    mean_absolute,
    lsgan_critic,
    bce_critic,
    hinge_critic,
]
GENERATOR_LOSSES = [lsgan_generator, bce_generator, minimax_generator, hinge_generator]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_negative_cosine_is_equation_1_of_simsiam() -> None:
    p, z = randn(5, 7, seed=1), randn(5, 7, seed=2)
    cosines = [
        sum(a * b for a, b in zip(u, v, strict=True)) / (math.hypot(*u) * math.hypot(*v))
        for u, v in zip(p.tolist(), z.tolist(), strict=True)
    ]
    assert negative_cosine(p, z).item() == pytest.approx(-mean(cosines), abs=1e-14)


def test_negative_cosine_does_not_depend_on_lengths() -> None:
    p, z = randn(5, 7, seed=1), randn(5, 7, seed=2)
    torch.testing.assert_close(negative_cosine(1e3 * p, z), negative_cosine(p, 1e-2 * z))


def test_negative_cosine_lets_the_gradient_of_both_arguments_pass() -> None:
    p, z = randn(5, 7, seed=1).requires_grad_(), randn(5, 7, seed=2).requires_grad_()
    torch.autograd.backward(negative_cosine(p, z))
    assert p.grad is not None
    assert p.grad.abs().sum() > 0
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


def test_a_zero_prediction_is_orthogonal_and_pulled_along_z_with_a_finite_gradient() -> None:
    p, z = torch.zeros(3, 4, requires_grad=True), randn(3, 4, dtype=torch.float32)
    loss = negative_cosine(p, z)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert p.grad is not None
    torch.testing.assert_close(p.grad, -z / z.norm(dim=1, keepdim=True) / 1e-4 / 3)


def test_collapsed_views_give_no_gradient_and_no_nan() -> None:
    p, z = torch.zeros(3, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    torch.autograd.backward(negative_cosine(p, z))
    assert p.grad is not None
    assert z.grad is not None
    assert not p.grad.any()
    assert not z.grad.any()


@pytest.mark.parametrize(("loss", "error"), [(mean_squared, lambda d: d * d), (mean_absolute, abs)])
def test_a_pixel_loss_is_the_mean_error_over_all_pixels(
    loss: Callable[..., Tensor], error: Callable[[float], float]
) -> None:
    x, y = randn(2, 3, 4, 5, seed=1), randn(2, 3, 4, 5, seed=2)
    errors = [error(d) for d in (x - y).flatten().tolist()]
    assert loss(x, y).item() == pytest.approx(mean(errors), rel=1e-13)


@pytest.mark.parametrize(("loss", "error"), [(mean_squared, lambda d: d * d), (mean_absolute, abs)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_masked_pixel_loss_is_the_mean_error_over_the_masked_pixels(
    loss: Callable[..., Tensor], error: Callable[[float], float], channels: int
) -> None:
    x, y = randn(2, 3, 4, 5, seed=1), randn(2, 3, 4, 5, seed=2)
    mask = randn(2, channels, 4, 5, seed=3) > 0.3
    counted = (x - y)[mask.expand(2, 3, 4, 5)].tolist()
    assert loss(x, y, mask).item() == pytest.approx(mean([error(d) for d in counted]), rel=1e-13)


@pytest.mark.parametrize("loss", [mean_squared, mean_absolute])
def test_an_empty_mask_gives_a_zero_loss_with_a_zero_gradient(loss: Callable[..., Tensor]) -> None:
    x = randn(2, 1, 4, 5).requires_grad_()
    value = loss(x, randn(2, 1, 4, 5, seed=1), torch.zeros(2, 1, 4, 5, dtype=torch.bool))
    torch.autograd.backward(value)
    assert value.item() == 0
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("loss", [mean_squared, mean_absolute])
def test_pixel_losses_refuse_to_broadcast(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(2, 1, 4, 4\) and \(2, 3, 4, 4\)"):
        loss(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 4, 4))


def test_critic_losses_are_their_formulas() -> None:
    real, fake = randn(2, 1, 3, 3, seed=1), randn(2, 1, 3, 3, seed=2)
    r, f = real.flatten().tolist(), fake.flatten().tolist()
    lsgan = 0.5 * (mean([(x - 1) ** 2 for x in r]) + mean([x**2 for x in f]))
    eq3 = mean([math.log(sigmoid(x)) for x in r]) + mean([math.log(1 - sigmoid(x)) for x in f])
    hinge = mean([max(0, 1 - x) for x in r]) + mean([max(0, 1 + x) for x in f])
    assert lsgan_critic(real, fake).item() == pytest.approx(lsgan, rel=1e-13)
    assert bce_critic(real, fake).item() == pytest.approx(-eq3, rel=1e-13)
    assert hinge_critic(real, fake).item() == pytest.approx(hinge, rel=1e-13)


def test_generator_losses_are_their_formulas() -> None:
    fake = randn(2, 1, 3, 3, seed=2)
    f = fake.flatten().tolist()
    log_real = mean([math.log(sigmoid(x)) for x in f])
    log_fake = mean([math.log(1 - sigmoid(x)) for x in f])
    assert lsgan_generator(fake).item() == pytest.approx(mean([(x - 1) ** 2 for x in f]), rel=1e-13)
    assert bce_generator(fake).item() == pytest.approx(-log_real, rel=1e-13)
    assert minimax_generator(fake).item() == pytest.approx(log_fake, rel=1e-13)
    assert hinge_generator(fake).item() == pytest.approx(-mean(f), rel=1e-13)


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


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_gradients_of_pair_losses_agree_with_finite_differences(
    loss: Callable[..., Tensor],
) -> None:
    inputs = (randn(3, 4, seed=1).requires_grad_(), randn(3, 4, seed=2).requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("loss", GENERATOR_LOSSES)
def test_gradients_of_generator_losses_agree_with_finite_differences(
    loss: Callable[..., Tensor],
) -> None:
    assert torch.autograd.gradcheck(loss, (randn(3, 4).requires_grad_(),))


@pytest.mark.parametrize("loss", [mean_squared, mean_absolute])
def test_gradients_of_masked_losses_agree_with_finite_differences(
    loss: Callable[..., Tensor],
) -> None:
    x, y = randn(2, 1, 3, 3, seed=1).requires_grad_(), randn(2, 1, 3, 3, seed=2).requires_grad_()
    mask = randn(2, 1, 3, 3, seed=3) > 0
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, mask), (x, y))


@pytest.mark.parametrize("loss", [*PAIR_LOSSES, *GENERATOR_LOSSES])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_under_autocast_give_the_float32_loss_and_gradient(
    loss: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    n_inputs = 1 if loss in GENERATOR_LOSSES else 2
    halves = [randn(6, 40, seed=seed).to(dtype).requires_grad_() for seed in range(n_inputs)]
    floats = [half.detach().float().requires_grad_() for half in halves]
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*halves)
    expected = loss(*floats)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    for got, wanted in zip(
        torch.autograd.grad(value, halves), torch.autograd.grad(expected, floats), strict=True
    ):
        assert torch.equal(got, wanted.to(dtype))


def test_in_float32_takes_products_out_of_autocast_for_keywords_too() -> None:
    def product(a: Tensor, b: Tensor, times: int = 1) -> Tensor:
        return times * (a @ b)

    a, b = randn(8, 8, seed=1).bfloat16(), randn(8, 8, seed=2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = product(a, b)
        raised = in_float32(product)(a, b=b, times=3)
        after = product(a.float(), b.float())
    assert inside.dtype == torch.bfloat16
    assert after.dtype == torch.bfloat16  # autocast is on again
    assert torch.equal(raised, 3 * (a.float() @ b.float()))
