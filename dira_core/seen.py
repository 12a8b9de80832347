"""Which images and patients weights were trained on: digests that travel beside the weights.

They say whether an image that is at hand was seen, where the images of the pretraining are gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from dira_core import digests
from dira_core.data.cache import CacheSource
from dira_core.data.folder import FileSource
from dira_core.data.images import read_image
from dira_core.data.pieces import stored
from dira_core.errors import CheckpointError, DataError
from dira_core.roles import Source
from dira_core.tensorfiles import read_tensors, write_tensors
from dira_core.weightfiles import BACKBONE, RESTORER, weights_folder

FORMAT = 1

READERS = 16
"""Files read at once: a network file system is slow to answer, not to deliver."""

SEEN = "seen.safetensors"
"""Beside the files of a folder of weights; of one file of weights, `NAME.seen.safetensors`."""


def _none() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class Seen:
    """What was seen: numbers of `dira_core.digests`, each (N,) int64, sorted and without doubles.

    Attributes:
        files: Of the images' files.
        pixels: Of decoded images, grey: of those that had no file at hand, but a cache.
        patients: Of patients' ids.
        unknown: Images of which there is no number.
        sources: Fingerprints of where they came from.
        gaps: What else may have been seen, in words.
    """

    files: np.ndarray = field(default_factory=_none)
    pixels: np.ndarray = field(default_factory=_none)
    patients: np.ndarray = field(default_factory=_none)
    unknown: int = 0
    sources: Sequence[str] = ()
    gaps: Sequence[str] = ()

    @property
    def images(self) -> int:
        """Images in all, each counted once."""
        return len(self.files) + len(self.pixels) + self.unknown

    def plus(self, other: Seen) -> Seen:
        """Return what was seen by one or the other."""
        again = set(other.sources) <= set(self.sources)
        unknown = self.unknown, other.unknown
        return Seen(
            np.union1d(self.files, other.files),
            np.union1d(self.pixels, other.pixels),
            np.union1d(self.patients, other.patients),
            max(unknown) if again else sum(unknown),
            tuple(dict.fromkeys([*self.sources, *other.sources])),
            (*self.gaps, *other.gaps),
        )

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        about = {
            "format": FORMAT,
            "unknown": self.unknown,
            "sources": list(self.sources),
            "gaps": list(self.gaps),
        }
        columns = {"files": self.files, "pixels": self.pixels, "patients": self.patients}
        tensors = {name: torch.from_numpy(each) for name, each in columns.items() if len(each)}
        write_tensors(path, tensors, {"seen": json.dumps(about)})


def read(path: Path) -> Seen:
    """Read what `Seen.write` wrote.

    Raises:
        CheckpointError: It is damaged, or of a newer dira.
    """
    try:
        tensors: dict[str, Any] = {n: tensor.numpy() for n, tensor in read_tensors(path).items()}
        if any(each.dtype != np.int64 or each.ndim != 1 for each in tensors.values()):
            raise ValueError("no numbers of images")
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["seen"])
        if about.pop("format") != FORMAT:
            raise ValueError("another format")
        about.pop("images", None)  # of an earlier dira, and a sum
        return Seen(**tensors, **about)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged, or of another dira: copy it again, or remove it (then nobody "
            "knows what the weights beside it saw)"
        ) from error


def place_of(weights: Path) -> Path:
    """Return where it lies for a run folder, a folder of weights or a file of them."""
    if weights.is_dir():
        return weights_folder(weights) / SEEN
    if weights.name in (BACKBONE, RESTORER):
        return weights.with_name(SEEN)
    return weights.with_suffix(f".{SEEN}")


def hand_on(weights: Path, to: Path) -> None:
    """Copy what is known of some weights to others that were made of them."""
    if place_of(weights).is_file():
        read(place_of(weights)).write(place_of(to))
    else:  # what is there is about weights that were there before
        place_of(to).unlink(missing_ok=True)


def of_source(source: Source) -> Seen:
    """Look at every image of a source: at its file, or in a cache at its pixels."""
    files: list[int] = []
    pixels: list[int] = []
    for index, number in enumerate(_of_files(source)):
        if number is not None:
            files.append(number)
        elif isinstance(source, CacheSource) and (number := of_image(source, index)) is not None:
            pixels.append(number)
    who = _none() if source.patients is None else np.unique(source.patients)
    return Seen(
        np.unique(np.array(files, np.int64)),
        np.unique(np.array(pixels, np.int64)),
        who[who != -1].astype(np.int64),
        len(source) - len(files) - len(pixels),
        (source.fingerprint(),),
    )


def _of_files(source: Source) -> Iterable[int | None]:
    """Return the number of each image's file; files are read many at once."""
    if not isinstance(source, FileSource):
        return map(source.digest, range(len(source)))
    with ThreadPoolExecutor(READERS) as pool:
        return [*pool.map(source.digest, range(len(source)))]


def of_image(source: Source, index: int) -> int | None:
    """Return the number of an image's pixels, as a cache would hold them; None if unreadable."""
    try:
        return digests.of_pixels(stored(read_image(source, index), grey=True).pixels)
    except DataError:
        return None


def with_initial(source: Source, initial: str | None) -> Seen:
    """Return what a run sees: its source, and whatever its initial weights saw.

    Args:
        source: Of the run.
        initial: Where weights came from; ImageNet's saw no medical image, random ones nothing.
    """
    before = Seen()
    if initial is not None and Path(initial).exists():
        path = place_of(Path(initial))
        unknown = Seen(gaps=[f"what its initial weights ({Path(initial).name}) saw"])
        before = read(path) if path.is_file() else unknown
    return before.plus(of_source(source))
