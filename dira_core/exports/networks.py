"""Encoder and U-Net as single networks, and how far two networks are apart."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dira_core.errors import CheckpointError, RecipeError
from dira_core.roles import Backbone, Restorer

SEED = 0
"""Of the random images that networks are compared on."""


@dataclass(frozen=True)
class Written:
    """What a target wrote.

    Attributes:
        files: In the order of their use.
        difference: See `difference`.
        code: Python that loads the first file.
        note: What the files do not hold.
    """

    files: Sequence[Path]
    difference: float
    code: str
    note: str


class Encoder(nn.Module):
    """Return the pooled features (B, D) of images, and the pyramid of maps."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pyramid = self.backbone(image)
        return (pyramid[-1].flatten(2).mean(-1), *pyramid)


class Restoring(nn.Module):
    """Return the restored images."""

    def __init__(self, backbone: Backbone, restorer: Restorer) -> None:
        super().__init__()
        self.backbone = backbone
        self.restorer = restorer

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (self.restorer(self.backbone(image)),)


def random_images(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return images in [0, 1], the same ones every time."""
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(SEED), dtype=dtype)


def difference(
    before: Callable[[Tensor], tuple[Tensor, ...]],
    after: Callable[[Tensor], tuple[Tensor, ...]],
    images: tuple[Tensor, Tensor],
) -> float:
    """Return the largest difference of outputs, relative to the largest value of each output.

    Args:
        before: A network.
        after: What must compute the same; outputs it has beyond those are not looked at.
        images: Fed to each of them.
    """
    with torch.no_grad():
        pairs = zip(before(images[0]), after(images[1]), strict=False)
        tiny = torch.finfo(images[0].dtype).tiny
        return max(float((a - b).abs().max() / a.abs().max().clamp(min=tiny)) for a, b in pairs)


def same_images(images: Tensor, channels: int) -> Tensor:
    """Repeat grey images over channels; others must have them already."""
    return images if images.shape[1] == channels else images.expand(-1, channels, *images.shape[2:])


def within(found: float, limit: float, library: str) -> float:
    """Return a difference that is small enough.

    Raises:
        CheckpointError: It is not.
    """
    if not found <= limit:
        raise CheckpointError(
            f"{library} computes something else with these weights (difference {found:.1e}, at "
            f"most {limit:.0e} is rounding), nothing is written: report it with its version"
        )
    return found


def need(module: str, to: str) -> Any:
    """Import an optional library.

    Raises:
        RecipeError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RecipeError(
            f"--to {to} needs {module}, which cannot be imported ({error}): "
            f"pip install 'dira-ssl[{to}]'"
        ) from error
