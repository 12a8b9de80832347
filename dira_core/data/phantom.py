"""Procedural frontal chest radiographs with known findings, drawn from their index alone.

Patients and exposures vary a little, findings are spread over both lungs: what crops of one image
have in common is mostly its finding, so that a minute of training can learn something about it.

Only operations that IEEE 754 rounds correctly are used (+ - * / sqrt, no exp, sin or BLAS), on raw
Philox bits, and the result is rounded to 8 bit: the same pixels on every platform.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dira_core.roles import Source
from dira_core.source_options import PhantomOptions
from dira_core.types import Image

Plane = np.ndarray[Any, Any]
"""(H, W) float32, or what broadcasts to it."""

CLASSES = ("normal", "reticulation", "miliary", "haze")
"""What the labels 0 to 3 mean; image i is of class i modulo 4."""

VERSION = 1
"""Raised when the same index no longer gives the same pixels; part of the fingerprint."""


class Dice:
    """Random numbers of one image, in the order they are asked for."""

    def __init__(self, index: int) -> None:
        self._bits = np.random.Philox(key=index)

    def number(self, low: float, high: float) -> float:
        """Return one number in [low, high)."""
        return low + (high - low) * (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def integer(self, low: int, high: int) -> int:
        """Return one integer, low <= x <= high."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def side(self) -> float:
        """Return -1 or 1."""
        return 2.0 * self.integer(0, 1) - 1.0

    def plane(self, height: int, width: int) -> Plane:
        """Return (height, width) numbers in [-1, 1]; eight of them cost one raw number."""
        raw = np.asarray(self._bits.random_raw(-(-height * width // 8)), dtype="<u8")
        values = raw.view(np.uint8)[: height * width].reshape(height, width)
        return np.asarray(values.astype(np.float32) / 127.5 - 1.0)


def ramp(x: Plane) -> Plane:
    """Step smoothly from 0 at x = 0 to 1 at x = 1."""
    x = np.clip(x, 0.0, 1.0)
    return np.asarray(x * x * (3.0 - 2.0 * x))


def bump(x: Plane) -> Plane:
    """Return 1 at x = 0, falling smoothly to 0 at |x| = 1."""
    x = np.maximum(1.0 - x * x, 0.0)
    return x * x


def clouds(dice: Dice, size: int, cells: int) -> Plane:
    """Return smooth noise in [-1, 1]: cells x cells random numbers, interpolated linearly."""
    grid = dice.plane(cells + 1, cells + 1)
    at = (np.arange(size, dtype=np.float32) + 0.5) * (cells / size)
    low = at.astype(np.int64)
    part = at - low.astype(np.float32)
    rows = grid[low] * (1.0 - part[:, None]) + grid[low + 1] * part[:, None]
    return np.asarray(rows[:, low] * (1.0 - part) + rows[:, low + 1] * part)


@dataclass(frozen=True)
class Chest:
    """Where things are in one patient.

    Attributes:
        x: Left to right of the image, about -1 to 1 over the body.
        y: Head to foot, about -1 to 1.
        lungs: 1 inside the lungs, 0 outside.
        apex: y of the lungs' tips.
        base: y of the diaphragm's domes.
        softness: Width of an edge, in units of x.
    """

    x: Plane
    y: Plane
    lungs: Plane
    apex: float
    base: float
    softness: float


@dataclass(frozen=True)
class Phantom:
    """One image, and what is in it.

    Attributes:
        pixels: (1, size, size) uint8.
        findings: (K, size, size) bool, one mask for each lung with the finding; K = 0 where normal.
    """

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    findings: np.ndarray[Any, np.dtype[np.bool_]]


def pose(dice: Dice, size: int) -> tuple[Plane, Plane]:
    """Return body coordinates of every pixel: rotated, scaled and moved at random."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    half = dice.number(-0.012, 0.012)  # tangent of half the angle, +-7 degrees
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    zoom, aspect = dice.number(0.9, 0.95), dice.number(0.992, 1.028)
    u = line[None, :] - dice.number(-0.02, 0.02)
    v = line[:, None] - dice.number(-0.02, 0.02)
    return (cosine * u + sine * v) * (zoom * aspect), (cosine * v - sine * u) * zoom


def anatomy(dice: Dice, size: int) -> Chest:
    """Place the lungs of a patient."""
    x, y = pose(dice, size)
    a, softness = np.abs(x), 3.0 / size
    apex, base = dice.number(-0.732, -0.708), dice.number(0.492, 0.528)
    width = dice.number(0.334, 0.346)
    middle, centre = dice.number(0.21, 0.24), dice.number(0.406, 0.414)
    across = (a - centre) / width
    down = (y - middle) / (middle - apex)
    inside = 1.0 - across * across - np.minimum(down, 0.0) ** 2
    domes = base + dice.number(0.66, 0.74) * (a - centre) ** 2 + 0.04 * np.sign(x)
    lungs = ramp(inside * (width / 2 / softness)) * ramp((domes - y) / softness)
    return Chest(x, y, lungs, apex, base, softness)


def tissue(chest: Chest, dice: Dice) -> Plane:
    """Return how much of the beam soft tissue takes: trunk, heart, mediastinum, abdomen."""
    x, y, a = chest.x, chest.y, np.abs(chest.x)
    neck, wide = dice.number(0.252, 0.268), dice.number(0.944, 0.976)
    shoulder = np.clip((y - chest.apex + 0.3) / dice.number(0.48, 0.52), 0.0, 1.0)
    half_width = neck + (wide - neck) * shoulder * (2.0 - shoulder)
    trunk = ramp((half_width - a) / (4 * chest.softness))
    shift, long, tilt = (
        dice.number(0.128, 0.142),
        dice.number(0.376, 0.404),
        dice.number(0.42, 0.48),
    )
    right, down = x - shift, y - chest.base + dice.number(0.172, 0.188)
    heart = 1.0 - ((right + tilt * down) / long) ** 2 - ((down - tilt * right) / (0.75 * long)) ** 2
    vessels = dice.number(0.14, 0.15) + 0.06 * bump((y - chest.apex - 0.42) / 0.16)
    middle = np.maximum(ramp(heart * 1.7), ramp((vessels - a) / (2 * chest.softness)))
    air = chest.lungs * (1.0 - 0.9 * middle)
    windpipe = 0.12 * bump(x / 0.06) * ramp((chest.apex + 0.5 - y) * 5)
    below = 0.16 * ramp((y - 0.2) * 1.4)
    return trunk * (0.5 + below + 0.1 * middle - windpipe - 0.38 * air)


def bones(chest: Chest, dice: Dice) -> Plane:
    """Return how much of the beam ribs, clavicles and spine take."""
    x, y, a = chest.x, chest.y, np.abs(chest.x)
    cage = ramp((0.84 - a) / 0.06) * ramp((y - chest.apex + 0.12) * 6) * ramp((0.75 - y) * 4)
    spacing, phase = dice.number(0.17, 0.18), dice.number(0.4, 0.6)
    bend = dice.number(0.66, 0.74)
    back = (y + 0.35 * a - bend * a * (0.8 - a)) / spacing + phase  # falls towards the flank
    front = (y - 0.55 * a) / (1.15 * spacing) + dice.number(0.4, 0.6)
    ribs = bump((back - np.floor(back) - 0.5) / 0.27) * ramp((a - 0.07) * 8)
    ribs *= dice.number(0.116, 0.134)
    ribs += dice.number(0.04, 0.05) * bump((front - np.floor(front) - 0.5) / 0.25) * ramp(a * 4 - 1)
    collar = y - chest.apex - 0.02 + dice.number(0.18, 0.22) * (a - 0.1)
    clavicles = 0.14 * bump(collar / 0.045) * ramp((a - 0.06) * 12) * ramp((0.72 - a) * 12)
    discs = y / dice.number(0.126, 0.134) + phase
    spine = bump(x / 0.1) * (0.13 + 0.05 * bump((discs - np.floor(discs) - 0.5) / 0.5))
    return np.asarray(ribs * cage + clavicles + spine)


def reticulation(chest: Chest, dice: Dice, size: int) -> Plane:
    """Return a net of fine lines in both lungs, as of interstitial fibrosis."""
    return bump(clouds(dice, size, 20) / 0.22) * chest.lungs * dice.number(0.3, 0.5)


def miliary(chest: Chest, dice: Dice, size: int) -> Plane:
    """Return countless small dots in both lungs, as of miliary tuberculosis."""
    return ramp((clouds(dice, size, 24) - 0.2) * 6) * chest.lungs * dice.number(0.5, 0.8)


def haze(chest: Chest, dice: Dice, size: int) -> Plane:
    """Return a veil with soft clouds over both lungs, as of oedema."""
    return (0.75 + 0.25 * clouds(dice, size, 16)) * chest.lungs * dice.number(0.35, 0.6)


FINDINGS: tuple[Callable[[Chest, Dice, int], Plane] | None, ...] = (
    None,
    reticulation,
    miliary,
    haze,
)
"""What draws each class, as the part of the beam it takes in addition."""


def draw(index: int, size: int) -> Phantom:
    """Draw image number `index`, a function of its arguments alone."""
    dice = Dice(index)
    chest = anatomy(dice, size)
    fine, coarse = clouds(dice, size, 16), clouds(dice, size, 5)
    finding = FINDINGS[index % len(CLASSES)]
    found = np.zeros_like(chest.lungs) if finding is None else finding(chest, dice, size)
    soft = tissue(chest, dice)
    dense = soft + bones(chest, dice) * np.minimum(2.0 * soft + 0.4, 1.0) * (soft > 0.0)
    dense = dense + chest.lungs * (0.07 * fine * bump(chest.x / 0.9) + 0.05 * coarse)
    dense = dense + found * np.maximum(0.66 - dense, 0.0)
    dense = dense * (1.0 + 0.06 * coarse)
    gain, black = dice.number(1, 1.15), dice.number(0.018, 0.052)
    curve = dice.number(-0.1, 0.1)
    grain = dice.plane(size, size) + dice.plane(size, size)
    grey = np.clip(gain * dense + black, 0.0, 1.0)
    grey = grey + curve * grey * (1.0 - grey) + dice.number(0.02, 0.025) * grain
    pixels = np.rint(np.clip(grey, 0.0, 1.0) * 255.0).astype(np.uint8)
    seen = (2.0 * found > found.max()) & (found > 0.0)
    masks = np.stack([seen & (chest.x < 0.0), seen & (chest.x >= 0.0)])
    return Phantom(pixels[None], masks[masks.any((1, 2))])


class PhantomSource(Source):
    """Procedural chest radiographs; image i is the same however many there are.

    Attributes:
        labels: Class of each image, see `CLASSES`; equally many of each.
    """

    def __init__(self, options: PhantomOptions) -> None:
        self._n = options.n
        self._size = options.size
        self.labels = np.arange(options.n, dtype=np.int64) % len(CLASSES)

    def __len__(self) -> int:
        return self._n

    def read(self, index: int) -> Image:
        """Draw one image, (1, size, size) uint8."""
        return Image(draw(index, self._size).pixels, window=(0.0, 255.0))

    def mask(self, index: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return where the finding of an image is, (size, size); False everywhere if normal."""
        return np.asarray(draw(index, self._size).findings.any(0))

    def boxes(self, index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the boxes of the finding's objects, (K, 2, 2): edges along y and x, in px."""
        found = [edges(mask) for mask in draw(index, self._size).findings]
        return np.array(found, dtype=np.int64).reshape(-1, 2, 2)

    def name(self, index: int) -> str:
        """Return the class and position of an image."""
        return f"phantom {index} ({CLASSES[index % len(CLASSES)]})"

    def fingerprint(self) -> str:
        """Return a digest of version, number and size."""
        offered = f"phantom {VERSION} {self._n} {self._size}"
        return hashlib.blake2b(offered.encode(), digest_size=16).hexdigest()


def edges(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> list[tuple[int, int]]:
    """Return the first and last edge of a mask (H, W) along y and x, in px."""
    spans = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    return [(int(span[0]), int(span[-1]) + 1) for span in spans]
