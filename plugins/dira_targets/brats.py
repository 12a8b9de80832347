"""BraTS: the whole tumour, in FLAIR or in all four modalities."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dira_core import DataError, Draws, FileMasks, FileSource, Image, Source
from dira_targets.files import found_below, source, tally
from dira_targets.options import BratsOptions

MODALITIES = ("flair", "t1", "t1ce", "t2")
END, FOLDS = "_seg.nii.gz", 3


class Stacked(Source):
    """Volumes of one place as channels of one, each in [0, 1] by its own window."""

    def __init__(self, sources: Sequence[FileSource]) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return len(self._sources[0])

    def read(self, index: int) -> Image:
        """Read all; raises as `FileSource.read` does, and where they differ in size."""
        images = [each.read(index) for each in self._sources]
        if len({image.pixels.shape for image in images}) > 1:
            raise DataError("its modalities differ in size")
        pixels = np.concatenate([_unit(each) for each in images])
        return replace(images[0], pixels=pixels, window=(0.0, 1.0))

    def name(self, index: int) -> str:
        """Return that of the first."""
        return self._sources[0].name(index)

    def digest(self, index: int) -> int | None:
        """Return that of the first."""
        return self._sources[0].digest(index)

    def there(self, index: int) -> bool:
        """Say whether the files of all exist."""
        return all(each.there(index) for each in self._sources)

    def fingerprint(self) -> str:
        """Return a digest of those of all."""
        joined = "".join(each.fingerprint() for each in self._sources)
        return hashlib.blake2b(joined.encode(), digest_size=16).hexdigest()


def read(options: BratsOptions, window: Any) -> FileMasks:
    """Read patients that have a segmentation and what is asked for; a third is tested.

    Raises:
        DataError: There is none.
    """
    place = found_below(options.path, ".nii.gz")
    wanted = MODALITIES if options.modality == "all" else (options.modality,)
    everyone = sorted(name.removesuffix(END) for name in place if name.endswith(END))
    patients = [who for who in everyone if all(f"{who}_{m}.nii.gz" in place for m in wanted)]
    if not patients:
        raise DataError(
            f"no PATIENT{END} with {', '.join(wanted)} below {str(options.path)!r}: unpack it there"
        )
    sources = [
        source(options.path, [place[f"{who}_{m}.nii.gz"] for who in patients], window)
        for m in wanted
    ]
    split = thirds(len(patients))
    missing = len(everyone) - len(patients)
    notes = [tally("BraTS", split)]
    notes += [f"left out: {missing} patients without {', '.join(wanted)}"] if missing else []
    return FileMasks(
        sources[0] if len(sources) == 1 else Stacked(sources),
        ("tumour",),
        split,
        patients,
        [Path(options.path) / place[f"{who}{END}"] for who in patients],
        {},
        None,
        notes=notes,
    )


def thirds(n: int) -> list[str]:
    """Return the parts of n patients: one of three random folds is for testing."""
    order = Draws(torch.arange(n), seed=0, path="brats/folds").uniform("order").argsort()
    tested = set(order[: max(1, n // FOLDS)].tolist())
    return ["test" if i in tested else "train" for i in range(n)]


def _unit(image: Image) -> np.ndarray:
    low, high = image.window
    scale = 1 / (high - low) if high > low else 0.0
    return ((image.pixels.astype(np.float32) - low) * scale).clip(0, 1)
