"""Barlow Twins' loss against equation 1 written plainly, lightly, and where it is nearly 0."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
from scipy.linalg import hadamard
from tensors import Largest, randn
from torch import Tensor
from torch.nn import functional as F

from dira_core import barlow_twins

LAMBD = 0.3
SHAPES = [(2, 3), (2, 4), (2, 9), (3, 5), (3, 6), (3, 7), (5, 3), (7, 14), (7, 15), (16, 16)]
"""Odd and even, on both sides of the line N = D / 2."""


def equation_1(z1: Tensor, z2: Tensor) -> float:
    def normalised(column: list[float]) -> list[float]:
        mean = fmean(column)
        variance = fmean((x - mean) ** 2 for x in column)
        return [(x - mean) / math.sqrt(variance + 1e-5) for x in column]

    columns = [[normalised(column) for column in z.T.tolist()] for z in (z1, z2)]
    c = [[fmean(x * y for x, y in zip(a, b, strict=True)) for b in columns[1]] for a in columns[0]]
    on = sum((1 - c[i][i]) ** 2 for i in range(len(c)))
    off = sum(c[i][j] ** 2 for i in range(len(c)) for j in range(len(c)) if i != j)
    return on + LAMBD * off


def published(z1: Tensor, z2: Tensor) -> Tensor:
    a, b = (F.batch_norm(z, None, None, training=True) for z in (z1, z2))
    c = a.T @ b / len(a)
    diagonal = torch.eye(len(c), dtype=torch.bool)
    return (c[diagonal] - 1).square().sum() + LAMBD * c[~diagonal].square().sum()


def views(n: int, dim: int, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    z1 = randn(n, dim, seed=1)
    return z1.requires_grad_(), (z1.detach() + noise * randn(n, dim, seed=2)).requires_grad_()


def gradients(loss: Tensor, *inputs: Tensor) -> Tensor:
    return torch.cat([g.double() for g in torch.autograd.grad(loss, inputs)])


def leaves(*inputs: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return the inputs, rounded to float32, as new leaves of a type."""
    return [tensor.detach().float().to(dtype).requires_grad_() for tensor in inputs]


def float32_and_float64(*inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    return leaves(*inputs, dtype=torch.float32), leaves(*inputs, dtype=torch.float64)


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_barlow_twins_is_equation_1_in_value_and_gradients(n: int, dim: int) -> None:
    z1, z2 = views(n, dim)
    loss, wanted = barlow_twins(z1, z2, LAMBD), published(z1, z2)
    assert loss.item() == pytest.approx(equation_1(z1, z2), rel=1e-12)
    torch.testing.assert_close(
        gradients(loss, z1, z2), gradients(wanted, z1, z2), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(("n", "dim"), [(5, 3), (5, 40)])
def test_gradients_of_both_forms_agree_with_finite_differences(n: int, dim: int) -> None:
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins(a, b, LAMBD), views(n, dim))


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_barlow_twins_is_lightly_s_loss_in_value_and_gradients(n: int, dim: int) -> None:
    lightly = pytest.importorskip("lightly.loss")
    z1, z2 = views(n, dim)
    loss, wanted = barlow_twins(z1, z2, LAMBD), lightly.BarlowTwinsLoss(LAMBD)(z1, z2)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradients(loss, z1, z2), gradients(wanted, z1, z2))


@pytest.mark.parametrize(("n", "dim"), [(33, 512), (256, 512), (256, 64)])
@pytest.mark.parametrize("noise", [1.0, 0.03])
def test_barlow_twins_in_float32_is_exact(n: int, dim: int, noise: float) -> None:
    singles, doubles = float32_and_float64(*views(n, dim, noise))
    loss, exact = barlow_twins(*singles, LAMBD), published(*doubles)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    wanted = gradients(exact, *doubles)
    assert (gradients(loss, *singles) - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("dim", [8, 31])
def test_barlow_twins_keeps_its_digits_where_it_is_nearly_0(dim: int) -> None:
    # orthogonal columns of mean 0 and variance 1: C is the identity but for batch norm's eps
    z = torch.tensor(hadamard(32)[:, 1 : 1 + dim], dtype=torch.float32)
    loss = barlow_twins(z, z, LAMBD)
    assert loss.item() == pytest.approx(dim * (1 - 1 / (1 + 1e-5)) ** 2, rel=1e-5)
    singles, doubles = float32_and_float64(z, z + 1e-2 * randn(32, dim))
    loss, exact = barlow_twins(*singles, LAMBD), published(*doubles)
    assert loss.item() < 0.05
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_views_that_agree_keep_the_digits_of_their_invariance_in_the_gram_form() -> None:
    z = randn(16, 64).float()
    variance = z.double().var(0, correction=0)
    loss = barlow_twins(z, z, 0.0)
    assert loss.item() < 1e-6
    assert loss.item() == pytest.approx((1e-5 / (variance + 1e-5)).square().sum().item(), rel=1e-5)


def test_constant_columns_have_no_correlation_and_a_finite_gradient() -> None:
    z1, z2 = views(4, 10)
    constant = (z.detach().index_fill(1, torch.tensor([0, 3]), 7.0) for z in (z1, z2))
    singles, doubles = float32_and_float64(*constant)
    loss, exact = barlow_twins(*singles, LAMBD), published(*doubles)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert gradients(loss, *singles).isfinite().all()


@pytest.mark.parametrize(("n", "largest"), [(8, 8 * 16), (9, 16 * 16)])
def test_the_matrix_of_all_dimensions_is_made_only_for_large_batches(n: int, largest: int) -> None:
    z1, z2 = views(n, 16)
    with Largest() as seen:
        torch.autograd.backward(barlow_twins(z1, z2, LAMBD))
    assert seen.numbers == largest


def test_barlow_twins_refuses_one_image_and_different_shapes() -> None:
    with pytest.raises(ValueError, match="needs two images, got 1"):
        barlow_twins(randn(1, 4), randn(1, 4), LAMBD)
    with pytest.raises(ValueError, match=r"one shape, got \(3, 4\) and \(3, 5\)"):
        barlow_twins(randn(3, 4), randn(3, 5), LAMBD)
