"""Memory that is used again: a fresh page can cost a processor more than what it does in it."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor


class Buffers:
    """Hand out memory of the CPU; take it back once nobody holds a tensor that lies in it."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[np.ndarray]] = defaultdict(list)

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        """Travel to another process empty."""
        return Buffers, ()

    def like(self, images: Tensor, n: int) -> Tensor:
        """Return n float32 images of any content, of the shape and memory layout of others."""
        size = images[0].numel()
        strides = torch.empty_like(images[0], device="meta").stride()
        return self.empty(n * size).as_strided((n, *images.shape[1:]), (size, *strides))

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a tensor of any content."""
        return self._take(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)

    def _take(self, size: int) -> Tensor:
        """Return bytes as a tensor; all that lies in them keeps one view of the array alive."""
        free = self._free[size]
        array = free.pop() if free else torch.empty(size, dtype=torch.uint8).numpy()  # aligned
        view = array[:]
        weakref.finalize(view, free.append, array).atexit = False
        return torch.from_numpy(view)
