"""Random tensors that are the same in every run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator of random numbers."""
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal numbers."""
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def units(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return rows of length 1."""
    return F.normalize(randn(*shape, seed=seed, dtype=dtype), dim=-1)


def blobs(k: int, each: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Return points around k far centres, in mixed order, and the centre each is around."""
    truth = torch.arange(k).repeat(each)
    return 20 * torch.eye(k, dim)[truth] + torch.randn(k * each, dim, generator=seeded()), truth


class Largest(TorchDispatchMode):
    """Remember the most numbers that any tensor made inside held, of one dtype or of all."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **kwargs or {})
        if isinstance(result, Tensor) and self.dtype in (None, result.dtype):
            self.numbers = max(self.numbers, result.numel())
        return result


def triangle_weights(side: int, size: int) -> np.ndarray:
    """Return the weight of each of `side` pixels in each of `size`: (size, side) float64.

    A triangle as wide as two pixels of the result, or of the source where those are wider.
    """
    scale = side / size
    reach = max(scale, 1.0)
    centre = (np.arange(size)[:, None] + 0.5) * scale
    near = np.maximum(0.0, 1.0 - np.abs(np.arange(side) + 0.5 - centre) / reach)
    weights: np.ndarray = near / near.sum(1, keepdims=True)
    return weights
