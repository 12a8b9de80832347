"""Memory that is used again: a fresh page can cost a processor more than what it does in it."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

_ONLY_HERE = 3
"""References to an array that nobody uses: the pool's list, the loop, the question itself."""


class Buffers:
    """Hand out memory of the CPU; take it back once nobody holds a tensor that lies in it."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def like(self, tensor: Tensor) -> Tensor:
        """Return a float32 tensor of the shape and memory layout of another, of any content."""
        strides = torch.empty_like(tensor, device="meta").stride()
        return self._take(tensor.numel()).as_strided(tensor.shape, strides)

    def empty(self, *shape: int) -> Tensor:
        """Return a float32 tensor of any content."""
        return self.like(torch.empty(shape, device="meta"))

    def _take(self, size: int) -> Tensor:
        for array in self._arrays:
            if array.size == size and sys.getrefcount(array) == _ONLY_HERE:
                return torch.from_numpy(array)
        self._arrays.append(np.empty(size, np.float32))
        return torch.from_numpy(self._arrays[-1])
