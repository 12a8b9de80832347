"""Weights of a ResNet and a U-Net as a run leaves them, for tests of where they travel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dira_core.build import build_trio
from dira_core.export import write_weights
from dira_core.recipe import Recipe
from dira_core.trio import Trio

WIDTHS = [12, 8, 8, 6, 4]
"""Of the decoder: all different from the default."""


def recipe(**changes: Any) -> Recipe:
    """Return ResNet-18 and a narrow U-Net on 32 px; keys in `changes` are replaced."""
    return Recipe.model_validate(
        {
            "data": "phantom",
            "backbone": "resnet18",
            "restorer": {"name": "unet", "widths": WIDTHS},
            "views": {"size": 32},
            **changes,
        }
    )


def lively(module: nn.Module) -> nn.Module:
    """Give batch norms statistics, scales and shifts that a mix-up would show; in evaluation."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.bias.data):
                assert tensor is not None
                tensor.uniform_(-0.2, 0.2, generator=generator)
            for tensor in (part.running_var, part.weight.data):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


def weights(folder: Path, chosen: Recipe) -> Trio:
    """Write the weights of a trio as a run in `folder` would, and return it."""
    trio = build_trio(chosen)
    lively(trio.backbone)
    if trio.restorer is not None:
        lively(trio.restorer)
    folder.mkdir(exist_ok=True)
    write_weights(folder / "weights", trio, chosen)
    return trio
