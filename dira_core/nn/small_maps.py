"""Convolutions of small maps in bf16 on CPUs: the gradient of their weights as a matrix product.

oneDNN sums it along the rows of a map, and gains nothing from AVX-512 where a row is 2 to 4 cells
long, as in the last stage of a ResNet at 64 to 128 px. As one product of all patches with all
gradients of the output the same sum took 1/2 to 1/4 of the time, an eighth of a whole step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 16
"""Cells of an output map up to which the product was the faster way."""


class SmallMapConv2d(nn.Conv2d):
    """An `nn.Conv2d` without groups and dilation that trains faster where maps are small."""

    def forward(self, images: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        if torch.compiler.is_compiling() or not self._applies(images):
            return super().forward(images)
        bias = None if self.bias is None else self.bias.bfloat16()
        found: Tensor = _Convolution.apply(
            images.bfloat16(), self.weight.bfloat16(), bias, self.stride, self.padding
        )
        return found

    def _applies(self, images: Tensor) -> bool:
        learns = self.weight.requires_grad and torch.is_grad_enabled()
        if not (learns and torch.is_autocast_enabled("cpu")):
            return False
        sides = zip(images.shape[2:], self.stride, strict=True)
        cells = math.prod(math.ceil(side / stride) for side, stride in sides)
        return torch.get_autocast_dtype("cpu") == torch.bfloat16 and cells <= LARGEST


def for_small_maps(module: nn.Module) -> None:
    """Turn a module's convolutions into such of small maps, in place, with their weights."""
    for part in module.modules():
        if type(part) is nn.Conv2d and _is_simple(part):
            part.__class__ = SmallMapConv2d


def _is_simple(conv: nn.Conv2d) -> bool:
    zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return zeros and conv.groups == 1 and conv.dilation == (1, 1) and conv.kernel_size != (1, 1)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        of_images, _, of_bias = torch.ops.aten.convolution_backward(
            gradient,
            images,
            weight,
            [len(weight)],
            ctx.stride,
            ctx.padding,
            [1, 1],
            False,
            [0, 0],
            1,
            [ctx.needs_input_grad[0], False, ctx.needs_input_grad[2]],
        )
        of_weight = _of_weight(images, gradient, weight.shape, ctx.stride, ctx.padding)
        return of_images, of_weight, of_bias, None, None


def _of_weight(
    images: Tensor,
    gradient: Tensor,
    shape: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Sum over images and cells: gradient of the output x patch under it, channels last."""
    (rows, columns), (down, right) = padding, stride
    outputs, inputs, height, width = shape
    padded = functional.pad(images.permute(0, 2, 3, 1), (0, 0, columns, columns, rows, rows))
    patches = padded.unfold(1, height, down).unfold(2, width, right).permute(0, 1, 2, 4, 5, 3)
    per_cell = gradient.permute(0, 2, 3, 1).reshape(-1, outputs)
    product = per_cell.t() @ patches.reshape(len(per_cell), -1)
    return product.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
