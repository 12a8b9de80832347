"""Pictures of what a run does: rows of crops, views and restorations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

GAP = 2
"""Pixels between two tiles."""


def tile(images: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Lay images (R, K, C, *S) in [0, 1] out as R rows of K.

    A volume shows its middle slice, the front of the patient up: the axis from the back to the
    front is turned over.

    Returns:
        (H, W, 3) uint8.
    """
    images = images.detach().float().cpu()
    if images.dim() == 6:
        images = images[:, :, :, images.shape[3] // 2].flip(-2)
    images = images if images.shape[2] == 3 else images[:, :, :1].expand(-1, -1, 3, -1, -1)
    padded = torch.nn.functional.pad(images, (0, GAP, 0, GAP), value=1.0)
    r, k, _, h, w = padded.shape
    sheet = padded.permute(0, 3, 1, 4, 2).reshape(r * h, k * w, 3)
    array: np.ndarray[Any, np.dtype[np.uint8]] = (sheet.clamp(0, 1) * 255).round().byte().numpy()
    return array


def contact_sheet(columns: Sequence[Tensor], rows: int = 8) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Show kinds of images side by side: `columns` are each (B, C, *S), one row for every image."""
    return tile(torch.stack([column[:rows].float().cpu() for column in columns], dim=1))


def write_png(path: Path, picture: np.ndarray[Any, np.dtype[np.uint8]], enlarge: int = 1) -> None:
    """Write (H, W, 3) uint8 as PNG, each pixel `enlarge` px wide."""
    picture = picture.repeat(enlarge, 0).repeat(enlarge, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(picture).save(path)
