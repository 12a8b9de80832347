"""Number formats of a step: what autocast computes in, and how small gradients survive fp16."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dira_core.errors import RecipeError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

SMALLEST_BF16_SIDE = 17
"""Of a view in px, on a CPU: below, a ResNet's last strided convolution meets maps of one pixel,
whose weight gradients torch 2.14 gets wrong in bf16 on CPUs (garbage, sometimes not finite)."""


def smallest_bf16_side(dims: int, stride: int) -> int:
    """Return the smallest side of a view in px that bf16 on a CPU takes.

    In 3-D it is worse than in 2-D: of 372 convolutions tried with torch 2.14, those whose maps have
    an axis of 1 or 2 voxels gave garbage (38 of them), all others were right. So the deepest map of
    the backbone, `stride` voxels apart, must have three along every axis.
    """
    return SMALLEST_BF16_SIDE if dims == 2 else max(SMALLEST_BF16_SIDE, 2 * stride + 1)


def resolve_device(name: str) -> torch.device:
    """Return the device `auto`, `cpu` or `cuda` means here.

    Raises:
        RecipeError: CUDA is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "train.device is 'cuda', but torch sees no GPU here: use --set train.device=cpu"
        )
    return torch.device(name)


def resolve_precision(
    name: str, device: torch.device, side: int, least: int = SMALLEST_BF16_SIDE
) -> str:
    """Return the number format `auto` means on a device: bf16 where its hardware has it.

    Args:
        name: What the recipe says.
        device: Where the step runs.
        side: The shortest of the smallest view, in px.
        least: The shortest side for bf16 on a CPU, see `smallest_bf16_side`.

    Raises:
        RecipeError: bf16 on a CPU is asked for, and views are too small for it.
    """
    tiny = device.type == "cpu" and side < least
    if tiny and name == "bf16":
        raise RecipeError(
            f"bf16 on a CPU needs views of {least} px and more, got {side}: use "
            "--precision fp32, or larger views (views.size, views.each)"
        )
    if name != "auto":
        return name
    if tiny:
        return "fp32"
    if has_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Say whether a device has instructions for bf16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported()


class Precision:
    """Autocast and loss scaling of one run, shared by its players.

    fp16 multiplies losses by a scale before the backward pass, so that small gradients survive, and
    divides it out again before they are used; fp32 and bf16 need none.

    Args:
        name: "fp32", "bf16" or "fp16".
        device: Where the step runs.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which networks compute in this format."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.name])

    def backward(self, loss: Tensor, inputs: Sequence[Tensor] | None = None) -> None:
        """Accumulate the (scaled) gradient of `loss` in `inputs`, or in every leaf."""
        torch.autograd.backward(self._scaler.scale(loss), inputs=inputs)

    def gradient(self, loss: Tensor, of: Tensor) -> Tensor:
        """Return d loss / d of, unscaled, keeping the graph of `loss` and touching no `.grad`."""
        (gradient,) = torch.autograd.grad(self._scaler.scale(loss), of, retain_graph=True)
        return gradient / self.scale if self.scales else gradient

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the scale out of the gradients of an optimizer's parameters."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Step the optimizers; fp16 leaves out one whose gradient overflowed and adapts."""
        for optimizer in optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()

    @property
    def scale(self) -> float:
        """By what losses are multiplied before their backward pass; 1 unless fp16."""
        return float(self._scaler.get_scale())

    @property
    def scales(self) -> bool:
        """Whether an overflowing gradient is the scaler's business, not a divergence."""
        return self._scaler.is_enabled()

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and its counters; empty unless fp16."""
        return dict(self._scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with a saved scale."""
        if state:
            self._scaler.load_state_dict(state)
