"""What every loss does with its arguments: float32, and shapes that match."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function of tensors outside autocast, on arguments raised to float32.

    float64 arguments stay float64, for checks by finite differences. Inside autocast a product
    such as `a.T @ b` would silently become bfloat16.
    """

    call: Callable[..., R] = function

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        given = {name: _raised(value) for name, value in kwargs.items()}
        device = next(a.device for a in (*args, *given.values()) if isinstance(a, Tensor))
        with torch.autocast(device.type, enabled=False):
            return call(*map(_raised, args), **given)

    return wrapped


def _raised(argument: object) -> object:
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return argument.to(torch.promote_types(argument.dtype, torch.float32))
    return argument


def same_shape(a: Tensor, b: Tensor, names: str) -> None:
    """Refuse tensors that would broadcast, in silence.

    Raises:
        ValueError: The shapes differ; `names` says whose, "a and b".
    """
    if a.shape != b.shape:
        raise ValueError(f"{names} must have one shape, got {(*a.shape,)} and {(*b.shape,)}")
