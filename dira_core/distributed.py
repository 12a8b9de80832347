"""What the processes of a run know together; in one process, every function is the identity."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(tensor: Tensor) -> Tensor:
    """Join the rows of all processes, in the order of their ranks: (B, ...) -> (world * B, ...).

    The gradient is exact: rows get what the losses of all processes ask of them, added up. With a
    loss of the gathered rows on each process, averaging the parameters' gradients (DDP) gives the
    gradient of one process that holds the whole batch.

    Args:
        tensor: Equally many rows on every process.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    return cast(Tensor, _Gather.apply(tensor))


class _Gather(torch.autograd.Function):
    """All-gather, whose gradient is the rank's part of an all-reduce."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()  # and so are pieces like it, which NCCL asks for
        pieces = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, tensor)
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
