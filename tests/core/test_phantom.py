"""The built-in radiographs: reproducible, labelled, with findings where the masks say."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from dira_core.data.phantom import CLASSES, Dice, PhantomSource, clouds, draw, edges
from dira_core.source_options import PhantomOptions


def source(n: int = 40, size: int = 64) -> PhantomSource:
    return PhantomSource(PhantomOptions(n=n, size=size))


def test_an_image_depends_on_its_index_alone() -> None:
    few, many = source(5), source(500)
    forwards = [few.read(i).pixels for i in range(5)]
    backwards = [many.read(i).pixels for i in reversed(range(5))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not np.array_equal(forwards[0], forwards[4])


@pytest.mark.parametrize("size", [32, 64, 97])
def test_pixels_are_grey_bytes_that_fill_the_window(size: int) -> None:
    image = source(size=size).read(3)
    assert image.pixels.shape == (1, size, size)
    assert image.pixels.dtype == np.uint8
    assert image.window == (0.0, 255.0)
    assert np.ptp(image.pixels.astype(int)) > 100


def test_arithmetic_stays_in_single_precision_where_every_platform_rounds_alike() -> None:
    assert Dice(0).plane(5, 7).dtype == np.float32
    assert clouds(Dice(0), 64, 5).dtype == np.float32


def test_raw_numbers_are_those_of_philox() -> None:
    raw = np.random.Philox(key=7).random_raw(2)
    dice = Dice(7)
    assert dice.number(0.0, 1.0) == pytest.approx(int(raw[0]) / 2**64, abs=2.0**-53)
    assert dice.integer(3, 12) == 3 + int(raw[1]) % 10


def test_noise_is_centred_and_uniform() -> None:
    values = Dice(1).plane(200, 200)
    assert abs(float(values.mean())) < 0.02
    assert float(values.std()) == pytest.approx(3**-0.5, abs=0.02)


def test_clouds_pass_through_their_grid() -> None:
    """At 3 cells of 5 px the middle of the first cell is the mean of its four corners."""
    grid = Dice(2).plane(4, 4)
    assert clouds(Dice(2), 15, 3)[2, 2] == pytest.approx(grid[:2, :2].mean(), abs=1e-6)


def test_classes_are_balanced_and_named() -> None:
    labelled = source(400)
    assert np.bincount(labelled.labels).tolist() == [100] * len(CLASSES)
    assert all(CLASSES[labelled.labels[i]] in labelled.name(i) for i in range(8))


def test_findings_are_masked_and_boxed_except_in_normal_images() -> None:
    images = source()
    for i in range(len(images)):
        mask, boxes = images.mask(i), images.boxes(i)
        assert mask.shape == (64, 64)
        assert mask.any() == (images.labels[i] != 0)
        covered = np.zeros_like(mask)
        for (top, bottom), (left, right) in boxes:
            assert 0 <= top < bottom <= 64
            assert 0 <= left < right <= 64
            covered[top:bottom, left:right] = True
        assert not (mask & ~covered).any()


def test_boxes_are_tight() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:5, 3] = mask[3, 3:8] = True
    assert edges(mask) == [(2, 5), (3, 8)]


def test_findings_are_brighter_than_the_lung_around_them() -> None:
    """Against the rest of the finding's surroundings: a ring of 4 px, in most images."""
    images, brighter = source(80), []
    for i in np.flatnonzero(images.labels == 2):
        mask, pixels = images.mask(i), images.read(i).pixels[0].astype(float)
        ring = mask.copy()
        for shift in (-4, 4):
            ring |= np.roll(mask, shift, 0) | np.roll(mask, shift, 1)
        brighter.append(pixels[mask].mean() > pixels[ring & ~mask].mean())
    assert np.mean(brighter) > 0.9


def test_poses_and_exposures_vary() -> None:
    pixels = [draw(4 * i, 64).pixels.astype(float) for i in range(30)]
    assert np.std([p.mean() for p in pixels]) > 2
    assert min(np.abs(a - b).mean() for a, b in pairwise(pixels)) > 8


def test_the_fingerprint_tells_sources_apart() -> None:
    prints = {s.fingerprint() for s in (source(5, 64), source(6, 64), source(5, 65))}
    assert len(prints) == 3
    assert source(5, 64).fingerprint() == source(5, 64).fingerprint()


@pytest.mark.slow
def test_pixels_do_not_depend_on_the_vector_instructions_of_the_processor() -> None:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    present = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
    script = (
        "import sys; from dira_core.data.phantom import draw\n"
        "sys.stdout.write(b''.join(draw(i, 48).pixels.tobytes() for i in range(12)).hex())"
    )
    env = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(present)}
    plain = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    )
    here = b"".join(draw(i, 48).pixels.tobytes() for i in range(12))
    assert bytes.fromhex(plain.stdout) == here
