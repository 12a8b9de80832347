"""Pixel losses against their formulas, masked and not."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import pytest
import torch
from tensors import randn
from torch import Tensor

from dira_core import mean_absolute, mean_squared


@pytest.mark.parametrize(("loss", "error"), [(mean_squared, lambda d: d * d), (mean_absolute, abs)])
def test_a_pixel_loss_is_the_mean_error_over_all_pixels(
    loss: Callable[..., Tensor], error: Callable[[float], float]
) -> None:
    x, y = randn(2, 3, 4, 5, seed=1), randn(2, 3, 4, 5, seed=2)
    errors = [error(d) for d in (x - y).flatten().tolist()]
    assert loss(x, y).item() == pytest.approx(fmean(errors), rel=1e-13)


@pytest.mark.parametrize(("loss", "error"), [(mean_squared, lambda d: d * d), (mean_absolute, abs)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_masked_pixel_loss_is_the_mean_over_images_of_the_mean_over_masked_pixels(
    loss: Callable[..., Tensor], error: Callable[[float], float], channels: int
) -> None:
    x, y = randn(4, 3, 4, 5, seed=1), randn(4, 3, 4, 5, seed=2)
    mask = randn(4, channels, 4, 5, seed=3) > 0.3
    counted = [(x - y)[i][mask[i].expand(3, 4, 5)].tolist() for i in range(4)]
    expected = fmean([fmean([error(d) for d in each]) for each in counted])
    assert loss(x, y, mask).item() == pytest.approx(expected, rel=1e-13)
    halves = [loss(*(part[rows] for part in (x, y, mask))) for rows in (slice(2), slice(2, 4))]
    assert fmean(half.item() for half in halves) == pytest.approx(expected, rel=1e-13)


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


@pytest.mark.parametrize("loss", [mean_squared, mean_absolute])
def test_gradients_of_masked_losses_agree_with_finite_differences(
    loss: Callable[..., Tensor],
) -> None:
    x, y = randn(2, 1, 3, 3, seed=1).requires_grad_(), randn(2, 1, 3, 3, seed=2).requires_grad_()
    mask = randn(2, 1, 3, 3, seed=3) > 0
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, mask), (x, y))
