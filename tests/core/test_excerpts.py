"""Crops resized on the device, a batch at once, are those that workers make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import small_settings
from tensors import triangle_weights
from torchvision.transforms.v2 import functional as tv

from dira_core.data.cache import CacheSource
from dira_core.data.caching import build
from dira_core.data.dataset import CropDataset, Request
from dira_core.data.excerpts import collected
from dira_core.errors import RecipeError
from dira_core.filters import resizing_matrices
from dira_core.roles import Source
from dira_core.settings import Settings
from dira_core.source_options import CacheOptions
from dira_core.testing import TinySource
from dira_core.types import Image
from dira_core.views import ViewMaker


def test_parts_of_any_size_are_resized_as_torchvision_does() -> None:
    rng = np.random.default_rng(0)
    shapes = [(37, 91), (150, 33), (24, 24), (5, 7)]
    parts = [rng.integers(0, 256, (1, *shape), np.uint8) for shape in shapes]
    found = collected(parts, [(0.0, 255.0)] * 4, 3, (24, 32)).on(torch.device("cpu"))
    assert found.shape == (4, 3, 24, 32)
    for part, crop in zip(parts, found, strict=True):
        grey = torch.from_numpy(part).float() / 255
        wanted = tv.resize(grey, [24, 32], antialias=True)
        torch.testing.assert_close(crop, wanted.expand(3, -1, -1), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kinds", [(np.uint8, np.uint16), (np.float32, np.uint8), (np.int32,)])
def test_values_of_every_type_are_windowed_by_their_own_window(kinds: tuple[type, ...]) -> None:
    parts = [np.full((1, 9, 9, 9), 40 + i, kind) for i, kind in enumerate(kinds)]
    windows = [(20.0, 60.0 + i) for i in range(len(kinds))]
    found = collected(parts, windows, 1, (4, 5, 6)).on(torch.device("cpu"))
    for i, crop in enumerate(found):
        torch.testing.assert_close(crop, torch.full_like(crop, (20 + i) / (40 + i)))
    flat = collected(parts[:1], [(40.0, 40.0)], 1, (4, 4, 4)).on(torch.device("cpu"))
    assert (flat == 0).all()


def test_matrices_are_those_of_single_images_and_zero_beyond() -> None:
    sides = torch.tensor([5, 16, 61])
    found = resizing_matrices(sides, 16, 61)
    for side, matrix in zip(sides.tolist(), found, strict=True):
        wanted = torch.from_numpy(triangle_weights(side, 16)).float()
        torch.testing.assert_close(matrix[:, :side], wanted, atol=1e-7, rtol=0)
        assert (matrix[:, side:] == 0).all()


class Odd(TinySource):
    """Images of many sizes."""

    def __init__(self, n: int, kind: type = np.uint16) -> None:
        super().__init__(n)
        self.kind = kind

    def read(self, index: int) -> Image:
        rng = np.random.default_rng(index)
        shape = (1, *rng.integers(20, 160, 2))
        return Image(rng.integers(0, 256, shape, self.kind), (10.0, 240.0))


def views_of(source: Source, **loader: Any) -> torch.Tensor:
    """Return the views of a batch."""
    settings: Settings = small_settings(loader=loader, views={"distort": ["inner-cutout"]})
    crops = CropDataset(source, settings, 2).crops(Request(range(8), epoch=1))
    batch = ViewMaker(settings, torch.device("cpu"), 2)(crops, 1, 0)
    return torch.stack([torch.stack([view.crop, view.image]) for view in batch.views])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("kind", "near"), [(np.uint16, 1e-5), (np.uint8, 1.5 / 230)]
)  # a level, stretched
def test_views_are_those_of_workers_to_rounding(
    tmp_path: Path, cached: bool, kind: type, near: float
) -> None:
    source: Source = Odd(8, kind)
    if cached:
        build(source, tmp_path / "cache", {"source": "odd"})
        source = CacheSource(CacheOptions(path=tmp_path / "cache"))
    found, wanted = views_of(source, resize="device"), views_of(source, resize="workers")
    torch.testing.assert_close(found, wanted, atol=near, rtol=0)


def test_a_filter_that_needs_crops_in_workers_is_refused() -> None:
    settings = small_settings(loader={"resize": "device"}, views={"lungs": {}})
    with pytest.raises(RecipeError, match=r"loader.resize=workers"):
        CropDataset(Odd(8), settings, 1)
