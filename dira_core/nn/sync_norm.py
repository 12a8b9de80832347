"""Batch norms of several processes: statistics of the global batch, or averaged after a step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dira_core.distributed import average, sum_over_processes, world_size


def synchronise(module: nn.Module, device: torch.device) -> None:
    """Replace the batch norms inside a module by ones over all processes; parameters stay.

    On a GPU they are torch's own, which know no CPU.
    """
    for name, child in list(module.named_children()):
        if not isinstance(child, _BatchNorm):
            synchronise(child, device)
        elif device.type == "cuda":
            converted = nn.SyncBatchNorm.convert_sync_batchnorm(child)  # type: ignore[no-untyped-call]
            setattr(module, name, converted)
        else:
            setattr(module, name, SyncBatchNorm(child))


def average_norms(module: nn.Module) -> None:
    """Average the running statistics of batch norms over all processes, in one message."""
    if world_size() > 1:
        found = (part for part in module.modules() if isinstance(part, _BatchNorm))
        measured = [(norm.running_mean, norm.running_var) for norm in found]
        average([tensor for pair in measured for tensor in pair if tensor is not None])


class SyncBatchNorm(_BatchNorm):
    """A batch norm over all processes, for any device; the same number of rows on each.

    Args:
        norm: Whose parameters, buffers and settings it takes over.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.track_running_stats = norm.track_running_stats
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, *S) by mean and variance of each channel."""
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = batch_mean(x)
        centred = x - per_channel(mean, x)
        variance = batch_mean(centred.square())
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach(), x.numel() // len(mean) * world_size())
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        out = centred * per_channel(scale, x)
        return (out + per_channel(self.bias, x) if self.affine else out).to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of axes."""

    def _track(self, mean: Tensor, variance: Tensor, n: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        part = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, part)
        self.running_var.lerp_(variance * n / max(1, n - 1), part)


def batch_mean(x: Tensor) -> Tensor:
    """Return the mean of each channel of (B, C, *S) over all processes, (C,)."""
    return sum_over_processes(x.transpose(0, 1).flatten(1).mean(1)) / world_size()


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (C,) so that it broadcasts over (B, C, *S)."""
    return values.view(1, -1, *[1] * (like.dim() - 2))
