"""Crops of volumes: from files and caches alike, and of mostly air where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from volumes import steps

from dira_core.data.caching import build
from dira_core.data.crops import soft_tissue
from dira_core.data.dataset import CropDataset, Crops, Request
from dira_core.data.folder import FolderSource
from dira_core.data.phantom3d import WINDOW, Phantom3dSource
from dira_core.data.pieces import VOLUMES
from dira_core.roles import Source
from dira_core.settings import Settings
from dira_core.source_options import FolderOptions, Phantom3dOptions


def crops(source: Source, indices: list[int], epoch: int = 0, **views: Any) -> Crops:
    chosen = {"size": [8, 16, 12], "scale": [0.05, 0.3], **views}
    dataset = CropDataset(source, Settings.model_validate({"views": chosen}), 2)
    return dataset.crops(Request(indices, epoch))


@pytest.fixture
def volumes(tmp_path: Path) -> FolderSource:
    drawn = Phantom3dSource(Phantom3dOptions(n=3, size=(24, 40, 44)))
    for i in range(3):
        hu = np.clip(drawn.read(i).pixels[0], *WINDOW)  # a cache cuts before crops are resized
        image = nib.Nifti1Image(hu.T, steps("RAS", (1, 1, 2)))
        image.to_filename(tmp_path / f"{i}.nii.gz")
    return FolderSource(FolderOptions(path=tmp_path, window=WINDOW))


def test_sides_of_crops_may_differ_along_the_axes(volumes: FolderSource) -> None:
    made = crops(volumes, [0, 1, 2])
    assert [view.shape for view in made.pixels] == [(3, 1, 8, 16, 12)] * 2
    assert made.box.shape == (3, 2, 3, 2)


def test_crops_of_a_cache_are_those_of_the_files(volumes: FolderSource, tmp_path: Path) -> None:
    """The window is spread over 16 bits; boxes may move by a pixel of the level cut from."""
    cache = build(volumes, tmp_path / "cache", {})
    from_files = crops(volumes, [0, 1, 2], scale=[0.05, 0.1])  # too small for a smaller level
    from_cache = crops(cache, [0, 1, 2], scale=[0.05, 0.1])
    assert torch.equal(from_files.box, from_cache.box)
    for one, other in zip(from_files.pixels, from_cache.pixels, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)
    assert cache.read(0).spacing == volumes.read(0).spacing


def test_a_cache_of_volumes_is_written_in_smaller_pieces(tmp_path: Path) -> None:
    """A kill costs no more than a piece, and a piece of 128 CTs would be 20 GB."""
    source = Phantom3dSource(Phantom3dOptions(n=2 * VOLUMES + 1, size=(16, 16, 16)))
    cache = build(source, tmp_path / "cache", {})
    assert len(cache.header.pieces) == 3
    assert len(cache) == 2 * VOLUMES + 1
    again = build(source, tmp_path / "cache", {})
    assert again.fingerprint() == cache.fingerprint()


def test_soft_tissue_counts_a_bright_voxel_and_half_of_the_one_before() -> None:
    column = torch.zeros(1, 6, 2, 2)
    column[0, 3, 0, 0] = column[0, 4, 0, 0] = 0.9
    assert soft_tissue(column, 0.5) == pytest.approx(2.5 / 24)
    assert soft_tissue(column, 0.95) == 0
    assert soft_tissue(torch.ones(1, 6, 2, 2), 0.5) == 1
    assert soft_tissue(column[:, 3], 0.5) == pytest.approx(1 / 4)


def test_soft_tissue_is_the_published_rule_written_plainly() -> None:
    """For each voxel the first bright one of itself and the two after: 1, 1/2 or 0."""
    generator = np.random.default_rng(0)
    crop = generator.random((1, 9, 7, 5)).astype(np.float32)
    total = 0.0
    for z, y, x in np.ndindex(crop.shape[1:]):
        column = crop[0, z : z + 3, y, x] >= 0.8
        total += {0: 1.0, 1: 0.5}.get(int(column.argmax()), 0.0) if column.any() else 0.0
    assert soft_tissue(torch.from_numpy(crop), 0.8) == pytest.approx(total / crop.size, abs=1e-6)


def test_crops_of_lungs_have_more_air_and_the_first_try_that_will_do_stays(
    volumes: FolderSource,
) -> None:
    above = (-150 - WINDOW[0]) / (WINDOW[1] - WINDOW[0])
    asked = {"above": above, "most": 0.4, "tries": 12}
    shares: dict[bool, list[float]] = {False: [], True: []}
    for epoch in range(8):
        plain = crops(volumes, [0, 1, 2], epoch)
        airy = crops(volumes, [0, 1, 2], epoch, lungs=asked)
        for view in range(2):
            for row in range(3):
                share = soft_tissue(plain.pixels[view][row], above)
                shares[False].append(share)
                shares[True].append(soft_tissue(airy.pixels[view][row], above))
                same = torch.equal(plain.box[row, view], airy.box[row, view])
                assert same or share > 0.4
    assert np.mean(shares[True]) < 0.8 * np.mean(shares[False])
    assert np.mean(np.array(shares[True]) <= 0.4) > 0.9


def test_where_nothing_will_do_the_crop_with_most_air_is_taken(volumes: FolderSource) -> None:
    few = crops(volumes, [0], lungs={"above": 0.5, "most": 0.0, "tries": 1})
    many = crops(volumes, [0], lungs={"above": 0.5, "most": 0.0, "tries": 6})
    for one, other in zip(few.pixels, many.pixels, strict=True):
        assert soft_tissue(other[0], 0.5) <= soft_tissue(one[0], 0.5)
    again = crops(volumes, [2, 0], lungs={"above": 0.5, "most": 0.0, "tries": 6})
    assert torch.equal(again.pixels[0][1], many.pixels[0][0])
