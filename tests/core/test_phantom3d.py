"""The built-in volumes: reproducible, labelled, with findings where the masks say."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from dira_core.data.phantom import Dice
from dira_core.data.phantom3d import (
    CLASSES,
    LUNG,
    WINDOW,
    Phantom3dSource,
    anatomy,
    clouds3d,
    draw,
    soft,
)
from dira_core.source_options import Phantom3dOptions

SIZE = (24, 40, 44)


def source(n: int = 8, size: tuple[int, int, int] = SIZE) -> Phantom3dSource:
    return Phantom3dSource(Phantom3dOptions(n=n, size=size))


def test_a_volume_depends_on_its_index_alone() -> None:
    few, many = source(5), source(500)
    forwards = [few.read(i).pixels for i in range(5)]
    backwards = [many.read(i).pixels for i in reversed(range(5))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not np.array_equal(forwards[0], forwards[4])
    assert few.fingerprint() != many.fingerprint()


@pytest.mark.parametrize("size", [(16, 16, 16), (24, 40, 44)])
def test_voxels_are_whole_numbers_in_hu_that_fill_the_window(size: tuple[int, int, int]) -> None:
    image = source(size=size).read(0)
    assert image.pixels.shape == (1, *size)
    assert image.pixels.dtype == np.float32
    assert image.window == WINDOW
    assert (image.pixels == np.rint(image.pixels)).all()
    assert image.pixels.min() <= -1000
    assert image.pixels.max() > 300


def test_axes_rise_to_the_head_the_front_and_the_right() -> None:
    """The spine is at the back, the diaphragm at the foot, the heart on the patient's left."""
    middle = SIZE[2] // 2
    for index in range(4):
        hu = draw(index, SIZE).pixels[0]
        assert hu[:, :, middle - 2 : middle + 2].mean((0, 2)).argmax() < SIZE[1] // 2
        inside = hu[:, 14:26, 6:-6]
        assert (inside[:6] < -600).sum() < (inside[8:14] < -600).sum()
        air = (hu < -600)[6:14, 14:26]
        assert air[..., 6:middle].sum() < air[..., middle:-6].sum()


@pytest.mark.parametrize("index", range(1, 8))
def test_findings_are_where_the_mask_says_and_change_the_lungs(index: int) -> None:
    drawn = draw(index, SIZE)
    if index % 4 == 0:
        assert not drawn.finding.any()
        return
    dice = Dice(index)
    chest = anatomy(dice, SIZE)
    lungs = chest.lungs > 0.9
    assert (lungs | ~drawn.finding).mean() > 0.99
    hu = drawn.pixels[0]
    change = np.median(hu[drawn.finding]) - LUNG
    assert change < -30 if CLASSES[index % 4] == "emphysema" else change > 60


def test_every_class_is_equally_frequent() -> None:
    assert np.bincount(source(40).labels).tolist() == [10] * 4
    assert source().name(5) == "phantom 5 (nodules)"
    assert source().mask(5).any()


def test_arithmetic_stays_in_single_precision_where_every_platform_rounds_alike() -> None:
    assert clouds3d(Dice(0), SIZE, (3, 4, 5)).dtype == np.float32
    assert anatomy(Dice(0), SIZE).lungs.dtype == np.float32
    assert soft(anatomy(Dice(0), SIZE), Dice(0), SIZE).dtype == np.float32


def test_clouds_pass_through_their_grid() -> None:
    """At cells of 3 px, the middle of the first cell is the mean of its eight corners."""
    grid = Dice(2).plane(3 * 4, 5).reshape(3, 4, 5)
    drawn = clouds3d(Dice(2), (6, 9, 12), (2, 3, 4))
    assert drawn[1, 1, 1] == pytest.approx(grid[:2, :2, :2].mean(), abs=1e-6)


@pytest.mark.slow
def test_voxels_do_not_depend_on_the_vector_instructions_of_the_processor() -> None:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    present = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
    script = (
        "import sys; from dira_core.data.phantom3d import draw\n"
        "sys.stdout.write(b''.join(draw(i, (16, 24, 28)).pixels.tobytes() for i in range(8)).hex())"
    )
    env = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(present)}
    plain = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    )
    here = b"".join(draw(i, (16, 24, 28)).pixels.tobytes() for i in range(8))
    assert bytes.fromhex(plain.stdout) == here
