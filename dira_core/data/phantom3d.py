"""Procedural CT-like volumes of chests with known findings, drawn from their index alone.

Axes are those of every volume: depth rises to the head, height to the front, width to the right
of the patient. As in `phantom`, only operations that IEEE 754 rounds correctly are used, so that
voxels are the same on every platform.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dira_core.data.phantom import Dice, bump, ramp
from dira_core.roles import Source
from dira_core.source_options import Phantom3dOptions
from dira_core.types import Image

Field = np.ndarray[Any, Any]
"""(D, H, W) float32, or what broadcasts to it."""

Size = tuple[int, int, int]

CLASSES = ("normal", "nodules", "haze", "emphysema")
"""What the labels 0 to 3 mean; volume i is of class i modulo 4."""

WINDOW = (-1000.0, 400.0)
"""What maps to 0 and 1, in HU."""

VERSION = 1
"""Raised when the same index no longer gives the same voxels; part of the fingerprint."""

AIR, LUNG, FAT, MUSCLE, HEART, BONE = -1000.0, -850.0, -100.0, 50.0, 40.0, 600.0
"""In HU."""


@dataclass(frozen=True)
class Chest3d:
    """Where things are in one patient, in coordinates of about -1 to 1.

    Attributes:
        x: Left to right, (1, 1, W).
        y: Back to front, (1, H, 1).
        z: Foot to head, (D, 1, 1).
        rim: 1 in the middle of the body, 0 on the skin, less outside; (1, H, W).
        lungs: 1 inside the lungs, 0 outside.
        edge: Width of an edge.
    """

    x: Field
    y: Field
    z: Field
    rim: Field
    lungs: Field
    edge: float


@dataclass(frozen=True)
class Phantom3d:
    """One volume, and what is in it.

    Attributes:
        pixels: (1, D, H, W) float32, whole numbers in HU.
        finding: (D, H, W) bool; False everywhere where normal.
    """

    pixels: Field
    finding: np.ndarray[Any, np.dtype[np.bool_]]


def clouds3d(dice: Dice, size: Size, cells: Size) -> Field:
    """Return smooth noise in [-1, 1]: random numbers at cell corners, interpolated linearly."""
    deep, high, wide = (n + 1 for n in cells)
    noise = dice.plane(deep * high, wide).reshape(deep, high, wide)
    for axis, (n, parts) in enumerate(zip(size, cells, strict=True)):
        at = (np.arange(n, dtype=np.float32) + 0.5) * (parts / n)
        low = at.astype(np.int64)
        part = (at - low.astype(np.float32)).reshape(-1, *[1] * (2 - axis))
        first, second = noise.take(low, axis), noise.take(low + 1, axis)
        noise = first + (second - first) * part
    return noise


def anatomy(dice: Dice, size: Size) -> Chest3d:
    """Place body and lungs of a patient."""
    z, y, x = (
        ((np.arange(n, dtype=np.float32) + 0.5) * (2.0 / n) - 1.0).reshape(shape)
        for n, shape in zip(size, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True)
    )
    x, y = x - dice.number(-0.03, 0.03), y - dice.number(-0.03, 0.03)
    z = z - dice.number(-0.1, 0.1)
    edge = 3.0 / max(size)
    rim = 1.0 - (x / dice.number(0.86, 0.94)) ** 2 - (y / dice.number(0.58, 0.66)) ** 2
    a = np.abs(x)
    across = (a - dice.number(0.42, 0.45)) / dice.number(0.29, 0.32)
    along = (y - dice.number(0.0, 0.04)) / dice.number(0.4, 0.45)
    top = np.maximum(z - dice.number(-0.2, 0.0), 0.0) / dice.number(0.85, 1.0)
    inside = 1.0 - across * across - along * along - top * top
    base = dice.number(-0.75, -0.6) - 0.25 * (across * across + along * along)
    lungs = ramp(inside / (6.0 * edge)) * ramp((z - base) / (2.0 * edge))
    return Chest3d(x, y, z, rim, lungs, edge)


def vessels(chest: Chest3d, dice: Dice, size: Size) -> Field:
    """Return how much of a voxel is a vessel of the lungs: where two random surfaces meet."""
    one, two = (clouds3d(dice, size, (6, 8, 8)) for _ in range(2))
    return np.asarray(bump(one / 0.3) * bump(two / 0.3) * chest.lungs)


def soft(chest: Chest3d, dice: Dice, size: Size) -> Field:
    """Return a healthy chest without bones, in HU."""
    x, y, z, edge = chest.x, chest.y, chest.z, chest.edge
    body = AIR + (FAT - AIR) * ramp(chest.rim / (4.0 * edge))
    body = body + (MUSCLE - FAT) * ramp((chest.rim - dice.number(0.14, 0.22)) / (3.0 * edge))
    left = x + dice.number(0.14, 0.2)  # the patient's left has low x
    front, up = y - dice.number(0.08, 0.14), z + dice.number(0.2, 0.3)
    heart = 1.0 - (left / 0.34) ** 2 - (front / 0.3) ** 2 - (up / dice.number(0.5, 0.6)) ** 2
    heart = ramp(heart / (5.0 * edge))
    air = chest.lungs * (1.0 - heart)
    air = air * (1.0 - 0.9 * vessels(chest, dice, size))
    chest_wall = body + (HEART - MUSCLE) * heart
    windpipe = ramp((0.006 - x * x - (y + 0.05) ** 2) / 0.004) * ramp((z - 0.1) / (2.0 * edge))
    air = np.maximum(air, windpipe)
    return np.asarray(chest_wall + (LUNG - chest_wall) * air)


def bones(chest: Chest3d, dice: Dice) -> Field:
    """Return how much of a voxel is bone: spine with its discs, ribs that fall to the front."""
    x, y, z = chest.x, chest.y, chest.z
    discs = z / dice.number(0.16, 0.19) + dice.number(0.0, 1.0)
    spine = ramp((0.016 - x * x - (y + dice.number(0.4, 0.44)) ** 2) / 0.006)
    spine = spine * (0.45 + 0.55 * ramp(3.0 - 6.0 * np.abs(discs - np.floor(discs) - 0.5)))
    ribs = (z + 0.5 * y) / dice.number(0.26, 0.3) + dice.number(0.0, 1.0)
    ribs = bump((ribs - np.floor(ribs) - 0.5) / 0.3)
    ribs = 0.8 * ribs * bump((chest.rim - 0.26) / 0.12) * (y < 0.5)
    return np.asarray(np.maximum(spine, ribs))


def nodules(chest: Chest3d, dice: Dice, size: Size) -> Field:
    """Return a few balls in each lung, as of metastases."""
    balls: Field = np.zeros(size, np.float32)
    for number in range(dice.integer(6, 10)):
        x = (0.42 + dice.number(-0.17, 0.17)) * (1.0 if number % 2 else -1.0)
        y, z = dice.number(-0.25, 0.25), dice.number(-0.5, 0.5)
        radius = dice.number(0.07, 0.12)
        away = (chest.x - x) ** 2 + (chest.y - y) ** 2 + (chest.z - z) ** 2
        balls = np.maximum(balls, ramp(2.0 - 2.0 * away / (radius * radius)))
    return np.asarray(balls * chest.lungs * dice.number(800.0, 900.0))


def haze(chest: Chest3d, dice: Dice, size: Size) -> Field:
    """Return a veil with soft clouds over both lungs, as of oedema."""
    cloud = 0.75 + 0.25 * clouds3d(dice, size, (3, 5, 5))
    return np.asarray(cloud * chest.lungs * dice.number(250.0, 400.0))


def emphysema(chest: Chest3d, dice: Dice, size: Size) -> Field:
    """Return holes in both lungs."""
    holes = ramp((clouds3d(dice, size, (5, 9, 9)) + 0.1) * 5.0)
    return np.asarray(holes * chest.lungs * dice.number(-140.0, -110.0))


FINDINGS: tuple[Callable[[Chest3d, Dice, Size], Field] | None, ...] = (
    None,
    nodules,
    haze,
    emphysema,
)
"""What draws each class, in HU to be added."""


def draw(index: int, size: Size) -> Phantom3d:
    """Draw volume number `index`, a function of its arguments alone."""
    dice = Dice(index)
    chest = anatomy(dice, size)
    finding = FINDINGS[index % len(CLASSES)]
    found: Field = np.zeros(size, np.float32)
    if finding is not None:
        found = finding(chest, dice, size)
    tissue = soft(chest, dice, size)
    room = np.clip((MUSCLE - tissue) / (MUSCLE - LUNG), 0.0, 1.0)  # none where there is tissue
    hu = tissue + found * room
    hu = hu + (BONE - hu) * bones(chest, dice)
    depth, height, width = size
    grain = dice.plane(depth * height, width) + dice.plane(depth * height, width)
    hu = hu + dice.number(15.0, 25.0) * grain.reshape(size)
    pixels = np.rint(np.maximum(hu, -1024.0)).astype(np.float32)
    strength = np.abs(found) * room
    return Phantom3d(pixels[None], (2.0 * strength > strength.max()) & (strength > 0.0))


class Phantom3dSource(Source):
    """Procedural CT-like volumes; volume i is the same however many there are.

    Attributes:
        labels: Class of each volume, see `CLASSES`; equally many of each.
        words: The same, for methods that need a pseudo-class: made-up volumes have made-up words.
    """

    def __init__(self, options: Phantom3dOptions) -> None:
        self._n = options.n
        self._size = options.size
        self.words = self.labels = np.arange(options.n, dtype=np.int64) % len(CLASSES)

    def __len__(self) -> int:
        return self._n

    def read(self, index: int) -> Image:
        """Draw one volume, (1, D, H, W) float32 in HU."""
        return Image(draw(index, self._size).pixels, WINDOW)

    def mask(self, index: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return where the finding of a volume is, (D, H, W); False everywhere if normal."""
        return draw(index, self._size).finding

    def name(self, index: int) -> str:
        """Return the class and position of a volume."""
        return f"phantom {index} ({CLASSES[index % len(CLASSES)]})"

    def fingerprint(self) -> str:
        """Return a digest of version, number and size."""
        offered = f"phantom3d {VERSION} {self._n} {self._size}"
        return hashlib.blake2b(offered.encode(), digest_size=16).hexdigest()
