"""What every loss keeps: gradients of finite differences, and float32 under autocast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tensors import randn, units
from torch import Tensor

from dira_core import (
    barlow_twins,
    bce_critic,
    bce_generator,
    hinge_critic,
    hinge_generator,
    in_float32,
    info_nce,
    lsgan_critic,
    lsgan_generator,
    mean_absolute,
    mean_squared,
    minimax_generator,
    negative_cosine,
    nt_xent,
)


def moco(queries: Tensor) -> Tensor:
    keys, negatives = units(*queries.shape, seed=8), units(5, queries.shape[1], seed=9)
    constants = (t.bfloat16().to(queries.dtype) for t in (keys, negatives))
    return info_nce(queries, *constants, 0.2)


PAIR_LOSSES = [
    negative_cosine,
    mean_squared,
    mean_absolute,
    lsgan_critic,
    bce_critic,
    hinge_critic,
    partial(nt_xent, temperature=0.2),
    partial(barlow_twins, lambd=0.3),
]
SINGLE_LOSSES = [lsgan_generator, bce_generator, minimax_generator, hinge_generator, moco]


@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_gradients_of_losses_of_two_tensors_agree_with_finite_differences(
    loss: Callable[..., Tensor],
) -> None:
    inputs = (randn(3, 4, seed=1).requires_grad_(), randn(3, 4, seed=2).requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("loss", SINGLE_LOSSES)
def test_gradients_of_losses_of_one_tensor_agree_with_finite_differences(
    loss: Callable[..., Tensor],
) -> None:
    assert torch.autograd.gradcheck(loss, (randn(3, 4).requires_grad_(),))


@pytest.mark.parametrize("loss", [*PAIR_LOSSES, *SINGLE_LOSSES])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_under_autocast_give_the_float32_loss_and_gradient(
    loss: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    n_inputs = 1 if loss in SINGLE_LOSSES else 2
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


def backward_twice(loss: Callable[..., Tensor], *inputs: Tensor) -> list[tuple[Tensor, ...]]:
    value = loss(*inputs)
    return [torch.autograd.grad(3 * value, inputs, retain_graph=True) for _ in range(2)]


@pytest.mark.parametrize("loss", [moco, partial(barlow_twins, lambd=0.3)])
def test_a_closed_form_gradient_can_be_asked_for_again_and_follows_the_loss_s_weight(
    loss: Callable[..., Tensor],
) -> None:
    inputs = [randn(4, 6, seed=seed).requires_grad_() for seed in range(1 + (loss is not moco))]
    first, second = backward_twice(loss, *inputs)
    once = torch.autograd.grad(loss(*inputs), inputs)
    for a, b, c in zip(first, second, once, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, 3 * c)


def test_a_closed_form_gradient_has_no_second_derivative() -> None:
    queries = units(3, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(moco(queries), queries, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(gradient.sum(), queries)
