"""Were test images, or their patients, seen in pretraining?

Digests that travel with the weights know. Weights of an older dira have none: their files are
compared by their bytes, if they are still there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dira_core import seen
from dira_core.build import build_source
from dira_core.data.folder import FileSource
from dira_core.digests import of_texts
from dira_core.donor import IMAGENET
from dira_core.errors import DataError, DiraError
from dira_core.files import digest
from dira_core.layering import file_layer
from dira_core.resolving import resolve
from dira_core.roles import Source
from dira_core.runfolder import RECIPE
from dira_core.targets import Labelled


@dataclass(frozen=True)
class Overlap:
    """Test images that pretraining saw too.

    Attributes:
        images: How many; None where it cannot be known.
        patients: How many show a patient of an id that pretraining saw; None without ids.
        why_not: Why it cannot be known, or is a lower bound.
        untrained: Whether there was no pretraining at all.
    """

    images: int | None
    patients: int | None = None
    why_not: str = ""
    untrained: bool = False

    def record(self) -> dict[str, Any]:
        """Return it for the result."""
        return asdict(self)

    def check(self) -> None:
        """Refuse test images that are known to have been seen, or whose patients were.

        Raises:
            DataError: Pretraining saw some.
        """
        if self.images or self.patients:
            raise DataError(
                f"pretraining saw {self.count()}, and the plan refuses that: "
                "pretrain on the training part alone (a CSV file with --set data.split=train), or "
                "say --seen warn and report the number"
            )

    def count(self) -> str:
        """Say what was seen."""
        found = [f"{self.images} of the test images"] if self.images else []
        if self.patients:
            found.append(f"patients of the same id as those of {self.patients} test images")
        return ", and ".join(found)

    def line(self) -> str:
        """Say it in one line."""
        also = f"; {self.why_not}" if self.why_not else ""
        if self.untrained:
            return "untrained weights saw no image"
        if self.images or self.patients:
            return f"WARNING: pretraining saw {self.count()}{also}"
        if self.images is None:
            return f"not known whether pretraining saw test images{also}"
        if self.why_not:
            return f"no test image is known to have been seen in pretraining, but {self.why_not}"
        return "no test image was seen in pretraining"


def overlap(weights: str, target: Labelled, test: np.ndarray[Any, Any]) -> Overlap:
    """Compare test images with those that weights were trained on.

    Args:
        weights: Of the transfer.
        target: Has the images.
        test: Positions of the test images.
    """
    if weights == IMAGENET:
        return Overlap(None, why_not="ImageNet's photographs are not looked through")
    place = seen.place_of(Path(weights))
    if place.is_file():
        return compared(seen.read(place), target, test)
    return by_files(weights, target.source, test)


def compared(known: seen.Seen, target: Labelled, test: np.ndarray[Any, Any]) -> Overlap:
    """Compare test images with digests of what was seen.

    Images are looked for by their files, and among those of a cache by their pixels.
    """
    source = target.source
    files = [source.digest(int(index)) for index in test]
    gaps = [*known.gaps]
    if known.unknown:
        gaps.append(f"{known.unknown} of the {known.images} images it was pretrained on")
    found = np.isin(_numbers(files), known.files)
    if len(known.pixels):
        pixels = [seen.of_image(source, int(index)) for index in test]
        found |= np.isin(_numbers(pixels), known.pixels)
    elif None in files:
        gaps.append(f"{files.count(None)} test images, which are no files")
    who = of_texts([target.patients[int(index)] for index in test])
    patients = np.isin(who, known.patients) & (who != -1)
    why_not = f"nothing is known of {', '.join(gaps)}" if gaps else ""
    comparable = len(known.files) or len(known.pixels)
    return Overlap(
        int(found.sum()) if comparable else None,
        int(patients.sum()) if len(known.patients) and (who != -1).any() else None,
        why_not,
    )


def _numbers(digests: Sequence[int | None]) -> np.ndarray[Any, Any]:
    """Return digests as an array, (N,) int64; 0, which no image has by chance, for None."""
    return np.array([each or 0 for each in digests], np.int64)


def by_files(weights: str, source: Source, test: np.ndarray[Any, Any]) -> Overlap:
    """Compare the files of test images with those a run was pretrained on, if they are still there.

    Only files of the same size are read, so that 100,000 images cost a look at each one's size.

    Args:
        weights: Of the transfer; a run folder says what it was pretrained on.
        source: Of the target.
        test: Positions of the test images.
    """
    recipe = Path(weights) / RECIPE
    if not recipe.is_file():
        return Overlap(None, why_not="the weights are no run folder with a recipe")
    if not isinstance(source, FileSource):
        return Overlap(None, why_not="the target's images are no files")
    try:
        pretraining = build_source(resolve([file_layer(recipe)]).recipe)
    except DiraError:
        return Overlap(None, why_not="the images it was pretrained on are not where they were")
    if not isinstance(pretraining, FileSource):
        return Overlap(None, why_not="the images it was pretrained on are no files")
    before = [pretraining.path(index) for index in range(len(pretraining))]
    there = [path for path in before if path.is_file()]
    if not there:
        return Overlap(None, why_not="the images it was pretrained on are not where they were")
    gone = len(before) - len(there)
    why_not = f"{gone} of the {len(before)} images it was pretrained on are gone" if gone else ""
    both = common([source.path(int(index)) for index in test], there)
    return Overlap(both, why_not=why_not)


def common(files: Sequence[Path], others: Sequence[Path]) -> int:
    """Count the files whose bytes are those of one of the others."""
    alike = defaultdict[int, list[Path]](list)
    for path in others:
        alike[path.stat().st_size].append(path)
    sizes = [path.stat().st_size for path in files]
    digests = {size: {digest(path) for path in alike[size]} for size in set(sizes) & alike.keys()}
    return sum(
        size in digests and digest(path) in digests[size]
        for path, size in zip(files, sizes, strict=True)
    )
