"""Contact sheets show what they are given, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from dira_core.pictures import GAP, contact_sheet, tile, write_png


def test_a_tile_is_where_its_row_and_column_say() -> None:
    images = torch.rand(3, 2, 1, 5, 7)
    sheet = tile(images)
    assert sheet.shape == (3 * (5 + GAP), 2 * (7 + GAP), 3)
    for row in range(3):
        for column in range(2):
            top, left = row * (5 + GAP), column * (7 + GAP)
            shown = sheet[top : top + 5, left : left + 7]
            wanted = np.rint(images[row, column, 0].numpy() * 255)
            assert all((shown[..., channel] == wanted).all() for channel in range(3))
    assert (sheet[5 : 5 + GAP] == 255).all()


def test_colour_stays_colour_and_other_channels_show_the_first() -> None:
    colour = torch.rand(1, 1, 3, 4, 4)
    wanted = np.rint(colour[0, 0].permute(1, 2, 0).numpy() * 255)
    assert (tile(colour)[:4, :4] == wanted).all()
    two = torch.rand(1, 1, 2, 4, 4)
    assert (tile(two) == tile(two[:, :, :1])).all()


def test_a_volume_shows_its_middle_slice_with_the_front_up() -> None:
    volume = torch.rand(2, 1, 1, 6, 4, 5)
    assert (tile(volume) == tile(volume[:, :, :, 3].flip(3))).all()


def test_what_leaves_the_range_is_clipped_and_half_precision_is_shown() -> None:
    images = torch.tensor([-1.0, 0.5, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 2, 2)
    shown = tile(images.bfloat16())
    assert [shown[0, column * (2 + GAP), 0] for column in range(3)] == [0, 128, 255]


def test_a_sheet_has_one_row_an_image_and_one_column_a_kind() -> None:
    crop, restored = torch.rand(5, 1, 4, 4), torch.rand(5, 1, 4, 4).double()
    sheet = contact_sheet([crop, restored, crop.requires_grad_()], rows=3)
    assert sheet.shape == (3 * (4 + GAP), 3 * (4 + GAP), 3)
    assert (sheet[:4, :4] == sheet[:4, 2 * (4 + GAP) : 2 * (4 + GAP) + 4]).all()


@pytest.mark.parametrize("enlarge", [1, 3])
def test_a_picture_on_disk_holds_every_pixel(tmp_path: Path, enlarge: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    write_png(tmp_path / "new/folder/a.png", picture, enlarge)
    with PillowImage.open(tmp_path / "new/folder/a.png") as read:
        found = np.asarray(read)
    assert (found == np.kron(picture, np.ones((enlarge, enlarge, 1), np.uint8))).all()
