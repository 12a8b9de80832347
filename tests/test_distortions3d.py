"""Distorted volumes follow the law of the plain loops of examples/benchmarks/distortions3d.py."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

SCRIPT = Path(__file__).parent.parent / "examples/benchmarks/distortions3d.py"
ALPHA = 1e-4

spec = importlib.util.spec_from_file_location("distortions3d", SCRIPT)
assert spec is not None
assert spec.loader is not None
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)


def ramp(*shape: int) -> np.ndarray:
    """A volume whose voxels rise from 0 to 1 along the last axis."""
    return np.broadcast_to(np.linspace(0, 1, shape[-1], dtype=np.float32), shape).copy()


def numbered(*shape: int) -> np.ndarray:
    """A volume whose voxels all differ, from 0 to 1."""
    return np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def moved(before: np.ndarray, after: np.ndarray) -> float:
    return float((np.abs(after - before) > 1e-7).mean())


def how_far(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(after - before).mean())


def at(*place: int) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda before, after: float(after[place] - before[place])


VOLUMES = {
    "elastic": (ramp(32, 64, 64), 50, [at(16, 32, 32), at(3, 9, 40), how_far]),
    "non-linear": (ramp(2, 2, 21), 120, [at(0, 0, 3), at(0, 0, 10), at(0, 0, 16), how_far]),
    "local shuffling, 5 windows": (numbered(20, 30, 40), 300, [moved, how_far]),
    "in-painting": (numbered(16, 24, 24), 300, [moved, how_far]),
    "out-painting": (numbered(16, 24, 24), 300, [moved, how_far]),
    "TransVW: elastic, one of four": (numbered(32, 64, 64), 40, [moved, how_far]),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_a_distortion_follows_the_law_of_the_loop(name: str) -> None:
    volume, n, measures = VOLUMES[name]
    loop, choices = plain.CONTESTS[name]
    random = np.random.default_rng(1)
    images = np.stack([volume[None]] * n)
    fast = plain.distorter(choices, images)(3).image.numpy()[:, 0]
    assert (images[:, 0] == volume).all()
    slow = [loop(volume, random) for _ in range(n)]
    for measure in measures:
        ours, theirs = ([measure(volume, one) for one in many] for many in (fast, slow))
        assert stats.ks_2samp(ours, theirs).pvalue > ALPHA


def test_ten_thousand_windows_move_as_many_voxels_as_in_the_loop() -> None:
    volume = numbered(32, 64, 64)
    loop, choices = plain.CONTESTS["local shuffling, 10,000 windows"]
    ours = plain.distorter(choices, volume[None, None])(0).image.numpy()[0, 0]
    theirs = loop(volume, np.random.default_rng(0))
    assert moved(volume, ours) == pytest.approx(moved(volume, theirs), abs=0.01)
    assert how_far(volume, ours) == pytest.approx(how_far(volume, theirs), rel=0.02)


def test_the_benchmark_times_every_contest(tmp_path: Path) -> None:
    size = ("--rounds", "1", "--batch", "1", "--size", "20", "20", "20")
    asked = [sys.executable, str(SCRIPT), *size]
    said = subprocess.run(asked, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert all(name in said for name in plain.CONTESTS)
