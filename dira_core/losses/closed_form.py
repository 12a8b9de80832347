"""A loss whose gradient is known in closed form, and computed along with its value."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def with_gradients(value: Tensor, inputs: tuple[Tensor, ...], *gradients: Tensor) -> Tensor:
    """Return `value` such that its gradient with respect to `inputs` is `gradients`.

    Nothing but `gradients` is kept for the backward pass: what they were computed from may be
    overwritten. There is no second derivative.

    Args:
        value: Scalar, computed outside autograd.
        inputs: What the value was computed from.
        gradients: Of the value, one for each input, of its shape.
    """
    return cast(Tensor, _WithGradients.apply(value, gradients, *inputs))


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *_: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(upstream[0] * gradient for gradient in ctx.saved_tensors)
