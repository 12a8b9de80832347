"""Candidates: places in volumes, each a finding or not."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from dira_core import (
    DataError,
    Draws,
    FileSource,
    Image,
    Labels,
    Source,
    find_column,
    read_csv,
)
from dira_targets.files import columns, source, tally
from dira_targets.options import CandidatesOptions, Luna16Options

LPS = np.array([-1.0, -1.0, 1.0])
"""Turns coordinates towards left, back and head into those of `Image.affine`."""

HELD = 2**30
"""Bytes of boxes that wait to be asked for, at most."""


class Candidates(Source):
    """Boxes around places in volumes.

    Where a volume is read all its boxes are cut out, and kept until they are asked for: a pass over
    all candidates, in any order, reads each volume once. Where there are too many to be held, those
    cut first are dropped.

    Args:
        volumes: Read one volume.
        of: Position of its volume for each candidate.
        places: mm towards right, front and head, (N, 3).
        extent: mm of a box along depth, height and width.
    """

    def __init__(
        self, volumes: FileSource, of: Sequence[int], places: np.ndarray, extent: Sequence[float]
    ) -> None:
        self._volumes, self._of, self._places, self._extent = volumes, of, places, extent
        self._within = defaultdict[int, list[int]](list)
        for index, volume in enumerate(of):
            self._within[volume].append(index)
        self._cut: dict[int, Image] = {}
        self._digests: dict[int, int | None] = {}
        self._frames: dict[int, tuple[np.ndarray, tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def read(self, index: int) -> Image:
        """Return the box around a candidate; what lies outside its volume is its darkest value.

        Raises:
            DataError: The volume cannot be read, or holds nothing of the box.
        """
        return self._cut.pop(index) if index in self._cut else self._cut_all(index)

    def digest(self, index: int) -> int | None:
        """Return that of its volume."""
        volume = self._of[index]
        if volume not in self._digests:
            self._digests[volume] = self._volumes.digest(volume)
        return self._digests[volume]

    def there(self, index: int) -> bool:
        """Say whether the file of its volume exists."""
        return self._volumes.there(self._of[index])

    def frame(self, index: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """Return the affine of a box, as of an image, and its shape; raises as `read` does."""
        if index not in self._frames:
            self._cut[index] = self._cut_all(index)
        return self._frames[index]

    def _cut_all(self, index: int) -> Image:
        """Return the box around a candidate; hold all others of its volume."""
        volume = self._volumes.read(self._of[index])
        for each in self._within[self._of[index]]:
            box = self._box(volume, each)
            if box is not None and box.affine is not None:
                self._cut[each] = box
                self._frames[each] = box.affine, box.pixels.shape[1:]
        if index not in self._cut:
            raise DataError("it lies outside its volume: check the axes of the coordinates")
        own = self._cut.pop(index)
        excess = sum(box.pixels.nbytes for box in self._cut.values()) - HELD
        while excess > 0:
            excess -= self._cut.pop(next(iter(self._cut))).pixels.nbytes
        return own

    def name(self, index: int) -> str:
        """Return its volume and its place."""
        at = ",".join(f"{x:.1f}" for x in self._places[index])
        return f"{self._volumes.name(self._of[index])}@{at}"

    def fingerprint(self) -> str:
        """Return a digest of volumes, places and extent."""
        digest = hashlib.blake2b(self._volumes.fingerprint().encode(), digest_size=16)
        digest.update(np.array(self._of, np.int64).tobytes() + self._places.tobytes())
        digest.update(repr(tuple(self._extent)).encode())
        return digest.hexdigest()

    def _box(self, volume: Image, index: int) -> Image | None:
        if volume.affine is None or volume.spacing is None:
            raise DataError("a flat image has no place for a candidate: list volumes")
        voxel = (np.linalg.inv(volume.affine) @ [*self._places[index], 1])[2::-1]
        sides = np.maximum(1, np.rint(np.divide(self._extent, volume.spacing))).astype(int)
        start = np.rint(voxel - (sides - 1) / 2).astype(int)
        pixels = cut_out(volume.pixels, start, sides)
        shift = np.eye(4)
        shift[:3, 3] = start[::-1]
        if pixels is None:
            return None
        return Image(pixels, volume.window, volume.spacing, affine=volume.affine @ shift)


def cut_out(pixels: np.ndarray, start: np.ndarray, sides: np.ndarray) -> np.ndarray | None:
    """Return a box (C, *sides) of an image (C, *S), its least value outside; None if all is."""
    low = np.maximum(start, 0)
    high = np.minimum(start + sides, pixels.shape[1:])
    if (low >= high).any():
        return None
    box = np.full((len(pixels), *sides), pixels.min(), pixels.dtype)
    there = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    here = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
    box[:, *here] = pixels[:, *there]
    return box


def thinned(positive: np.ndarray, split: Sequence[str], negatives: float | None) -> np.ndarray:
    """Return the positions of all positives, and of some negatives for each, part by part."""
    everything = np.arange(len(positive))
    if negatives is None:
        return everything
    draws = Draws(torch.arange(len(positive)), seed=0, path="candidates/negatives")
    rank = draws.uniform("order").numpy()
    kept = [everything[positive]]
    for part in dict.fromkeys(split):
        within = np.array([each == part for each in split])
        others = everything[within & ~positive]
        n = round(negatives * int((within & positive).sum()))
        kept.append(others[rank[others].argsort()][:n])
    return np.sort(np.concatenate(kept))


class Listed(NamedTuple):
    """All candidates of a set, N of them in V volumes.

    Attributes:
        volumes: The V volumes.
        of: Position of its volume for each.
        places: mm towards right, front and head, (N, 3).
        positive: Which are findings, (N,) bool.
        split: Part of each, or None.
        patients: Of each.
    """

    volumes: FileSource
    of: Sequence[int]
    places: np.ndarray
    positive: np.ndarray
    split: Sequence[str] | None
    patients: Sequence[str]


def labelled(name: str, of_all: Listed, options: CandidatesOptions | Luna16Options) -> Labels:
    """Put a target together from all candidates, which it thins."""
    n, split = len(of_all.of), of_all.split
    kept = thinned(of_all.positive, split or [""] * n, options.negatives)
    parts = None if split is None else [split[i] for i in kept]
    places, yes = of_all.places[kept], of_all.positive[kept]
    notes = [tally(name, parts or ["candidates"] * len(kept))]
    notes += [f"findings: {yes.sum():,} of {len(kept):,}, in {len(of_all.volumes):,} volumes"]
    if len(kept) < n:
        notes.append(f"left out: {n - len(kept):,} without a finding (target.negatives)")
    return Labels(
        Candidates(of_all.volumes, [of_all.of[i] for i in kept], places, options.extent),
        ("finding",),
        parts,
        [of_all.patients[i] for i in kept],
        yes[:, None].astype(np.float64),
        exclusive=False,
        notes=notes,
    )


def read(options: CandidatesOptions, window: Any) -> Labels:
    """Read the places of a CSV file.

    Raises:
        DataError: It cannot be read, or a cell is not what it should be.
    """
    rows = columns(options.path, "image", "x", "y", "z", "label")
    header, _ = read_csv(options.path)
    more = {
        name: [cell for (cell,) in columns(options.path, name)]
        for name in ("patient", "split")
        if find_column(header, name) is not None
    }
    images = list(dict.fromkeys(row[0] for row in rows))
    number = {image: n for n, image in enumerate(images)}
    places = numbers([row[1:4] for row in rows])
    if not {row[4] for row in rows} <= {"0", "1"}:
        raise DataError("the column label of candidates takes 0 and 1")
    patients = more.get("patient", [""] * len(rows))
    listed = Listed(
        source(options.path.parent, images, window),
        [number[row[0]] for row in rows],
        places * LPS if options.axes == "LPS" else places,
        np.array([row[4] == "1" for row in rows]),
        more.get("split"),
        [who or os.path.normpath(row[0]) for who, row in zip(patients, rows, strict=True)],
    )
    return labelled("candidates", listed, options)


def numbers(cells: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Return coordinates (N, 3).

    Raises:
        DataError: One is no number.
    """
    try:
        found = np.array(cells, np.float64)
    except ValueError:
        found = np.full((1, 3), np.nan)
    if not np.isfinite(found).all():
        raise DataError("a coordinate of a candidate is not a number")
    return found
