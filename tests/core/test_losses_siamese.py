"""Negative cosine against its formula, and where vectors vanish."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
from tensors import randn

from dira_core import negative_cosine


def test_negative_cosine_is_equation_1_of_simsiam() -> None:
    p, z = randn(5, 7, seed=1), randn(5, 7, seed=2)
    cosines = [
        sum(a * b for a, b in zip(u, v, strict=True)) / (math.hypot(*u) * math.hypot(*v))
        for u, v in zip(p.tolist(), z.tolist(), strict=True)
    ]
    assert negative_cosine(p, z).item() == pytest.approx(-fmean(cosines), abs=1e-14)


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
