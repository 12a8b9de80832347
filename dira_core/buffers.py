"""Memory that is used again: a fresh page can cost a processor more than what it does in it."""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from torch import Tensor


def _references(arrays: list[np.ndarray]) -> int:
    """Return how many references to an array are counted where only the pool has it."""
    for array in arrays:
        return sys.getrefcount(array)
    raise AssertionError


_ONLY_HERE = _references([np.empty(0)])
"""The pool's list, the loop, the question itself; how many of them count depends on Python."""


class Buffers:
    """Hand out memory of the CPU; take it back once nobody holds a tensor that lies in it."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def like(self, images: Tensor, n: int) -> Tensor:
        """Return n float32 images of any content, of the shape and memory layout of others."""
        size = images[0].numel()
        strides = torch.empty_like(images[0], device="meta").stride()
        return self._take(n * size).as_strided((n, *images.shape[1:]), (size, *strides))

    def empty(self, *shape: int) -> Tensor:
        """Return a float32 tensor of any content."""
        return self._take(math.prod(shape)).view(shape)

    def _take(self, size: int) -> Tensor:
        for array in self._arrays:
            if array.size == size and sys.getrefcount(array) == _ONLY_HERE:
                return torch.from_numpy(array)
        self._arrays.append(np.empty(size, np.float32))
        return torch.from_numpy(self._arrays[-1])
