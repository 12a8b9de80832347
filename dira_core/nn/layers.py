"""Layers for images of two or three spatial axes, chosen by `dims`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import gcd
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "instance", "group"]

_CONV: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORM: dict[int, type[nn.BatchNorm2d | nn.BatchNorm3d]] = {
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
_DOUBLING: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_MLP_NORM: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    0: nn.BatchNorm1d,
    **_BATCH_NORM,
}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def conv(
    dims: int, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, bias: bool = True
) -> nn.Conv2d | nn.Conv3d:
    """Return a padded convolution: (B, inputs, *S) -> (B, outputs, *ceil(S / stride)).

    Args:
        dims: Number of spatial axes, 2 or 3.
        inputs: Channels that come in.
        outputs: Channels that go out.
        kernel: Side of the kernel in px; odd.
        stride: Step along every axis in px.
        bias: Whether a bias is added; not useful before a batch norm.
    """
    return _CONV[dims](inputs, outputs, kernel, stride, kernel // 2, bias=bias)


def batch_norm(dims: int, channels: int) -> nn.BatchNorm2d | nn.BatchNorm3d:
    """Return a batch norm with a trained scale and shift, (B, channels, *S)."""
    return _BATCH_NORM[dims](channels)


def norm_layer(kind: Norm, dims: int, channels: int) -> nn.Module:
    """Return a norm with a trained scale and shift, (B, channels, *S).

    Instance norm is a group norm with one channel a group: unlike torch's own it takes maps of one
    pixel, which it turns into its shift. Group norm has 16 channels a group, or where that does not
    divide them, as many as do.
    """
    if kind == "batch":
        return batch_norm(dims, channels)
    return nn.GroupNorm(channels if kind == "instance" else channels // gcd(channels, 16), channels)


def instance_norm(maps: Tensor) -> Tensor:
    """Give every channel of every image mean 0 and variance 1 over space, (B, C, *S).

    The memory layout of `maps` is kept: torch's own drops channels-last, after which a critic's
    step in bf16 on a CPU takes 1.18 times as long. (Group norm with one channel a group is the
    same function, and there the slowest: 2.4 times.)

    Source: Ulyanov et al., arXiv:1607.08022, without scale, shift and running statistics.

    Raises:
        ValueError: The maps are one pixel large, of which nothing would be left.
    """
    normed = F.instance_norm(maps)
    layout = _CHANNELS_LAST[maps.dim() - 2]
    return (
        normed.contiguous(memory_format=layout)
        if maps.is_contiguous(memory_format=layout)
        else normed
    )


def doubling_conv(dims: int, channels: int) -> nn.ConvTranspose2d | nn.ConvTranspose3d:
    """Return a transposed convolution that doubles every side: kernel and stride 2."""
    return _DOUBLING[dims](channels, channels, 2, 2)


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat the nearest pixel until the maps (B, C, *S) have `size`.

    From n to 2 n - 1 pixels this is doubling and dropping the last one, which is what undoes a
    stride of 2 on an odd side.
    """
    return F.interpolate(maps, size=tuple(size), mode="nearest")


def mlp(
    sizes: Sequence[int], *, dims: int = 0, norm: bool = True, last_norm: bool = False
) -> nn.Sequential:
    """Return linear layers of `sizes` (first: inputs) with ReLU between them, (B, D) -> (B, D').

    A layer followed by a batch norm has no bias.

    Args:
        sizes: Widths, at least two.
        dims: Spatial axes of maps (B, D, *S) whose cells are mapped each by itself; 0: vectors.
        norm: Put a batch norm before every ReLU.
        last_norm: End with a batch norm without scale and shift, so that each dimension of the
            output has mean 0 and variance 1 over the batch (SimSiam, Barlow Twins).
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers.append(_linear(dims, inputs, outputs, bias=not norm))
        layers += [_MLP_NORM[dims](outputs)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    layers.append(_linear(dims, sizes[-2], sizes[-1], bias=not last_norm))
    layers += [_MLP_NORM[dims](sizes[-1], affine=False)] if last_norm else []
    return nn.Sequential(*layers)


def _linear(dims: int, inputs: int, outputs: int, *, bias: bool) -> nn.Module:
    if dims:
        return conv(dims, inputs, outputs, kernel=1, bias=bias)
    return nn.Linear(inputs, outputs, bias=bias)


def unit(vectors: Tensor) -> Tensor:
    """Bring vectors to length 1 along the last axis, in float32 at least: (..., D)."""
    raised = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    return F.normalize(raised, dim=-1)


def cells(maps: Tensor) -> Tensor:
    """Return the cells of maps (B, D, *S), row by row, as unit vectors: (B, N, D)."""
    return unit(maps.flatten(2).transpose(1, 2))
