"""The embeddings of the last images, as negatives or neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Queue(nn.Module):
    """The last `size` keys, whose they are, and where the next one goes.

    Source: He et al., "Momentum Contrast", CVPR 2020, arXiv:1911.05722, section 3.2. The size need
    not be a multiple of the batch.

    Args:
        size: Keys held.
        dim: Width of a key.

    Attributes:
        keys: (size, dim), random unit vectors until they are overwritten.
        index: (size,) int64, position of each key's image in its source; -1 is nobody's.
    """

    keys: Tensor
    index: Tensor
    cursor: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("index", torch.full((size,), -1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def excluded(self, index: Tensor) -> Tensor:
        """Return which keys are no negatives of images (B,): their own, and nobody's; (B, size)."""
        return (self.index == index[:, None]) | (self.index < 0)

    @torch.no_grad()
    def push(self, keys: Tensor, index: Tensor) -> None:
        """Write keys (N, dim) of images (N,) over the oldest ones; of more than fit, the last."""
        size = len(self.keys)
        skipped = max(0, len(keys) - size)
        places = (self.cursor + torch.arange(skipped, len(keys), device=keys.device)) % size
        self.keys[places] = keys[skipped:].to(self.keys.dtype)
        self.index[places] = index[skipped:]
        self.cursor.add_(len(keys)).remainder_(size)
