"""Were test images seen in pretraining? Compared by the bytes of their files, at transfer time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dira_core.build import build_source
from dira_core.data.folder import FileSource
from dira_core.errors import DataError, DiraError
from dira_core.files import digest
from dira_core.layering import file_layer
from dira_core.resolving import resolve
from dira_core.roles import Source
from dira_core.runfolder import RECIPE


@dataclass(frozen=True)
class Overlap:
    """Test images that pretraining saw too.

    Attributes:
        images: How many; None where it cannot be known.
        why_not: Why it cannot be known, or is a lower bound.
        untrained: Whether there was no pretraining at all.
    """

    images: int | None
    why_not: str = ""
    untrained: bool = False

    def record(self) -> dict[str, Any]:
        """Return it for the result."""
        return asdict(self)

    def check(self) -> None:
        """Refuse test images that are known to have been seen.

        Raises:
            DataError: Pretraining saw some.
        """
        if self.images:
            raise DataError(
                f"pretraining saw {self.images} of the test images, and the plan refuses that: "
                "pretrain on the training part alone (a CSV file with --set data.split=train), or "
                "say --seen warn and report the number"
            )

    def line(self) -> str:
        """Say it in one line."""
        if self.images is None:
            return f"not known whether pretraining saw test images: {self.why_not}"
        also = f"; {self.why_not}" if self.why_not else ""
        if self.untrained:
            return "untrained weights saw no image"
        if self.images:
            return f"WARNING: pretraining saw {self.images} of the test images{also}"
        return f"no test image was seen in pretraining (files compared by their bytes){also}"


def overlap(weights: str, source: Source, test: np.ndarray[Any, Any]) -> Overlap:
    """Compare the files of test images with those a run was pretrained on, if they are still there.

    Only files of the same size are read, so that 100,000 images cost a look at each one's size.

    Args:
        weights: Of the transfer; a run folder says what it was pretrained on.
        source: Of the target.
        test: Positions of the test images.
    """
    recipe = Path(weights) / RECIPE
    if not recipe.is_file():
        return Overlap(None, "the weights are no run folder with a recipe")
    if not isinstance(source, FileSource):
        return Overlap(None, "the target's images are no files")
    try:
        pretraining = build_source(resolve([file_layer(recipe)]).recipe)
    except DiraError:
        return Overlap(None, "the images it was pretrained on are not where they were")
    if not isinstance(pretraining, FileSource):
        return Overlap(None, "the images it was pretrained on are no files")
    before = [pretraining.path(index) for index in range(len(pretraining))]
    there = [path for path in before if path.is_file()]
    if not there:
        return Overlap(None, "the images it was pretrained on are not where they were")
    gone = len(before) - len(there)
    why_not = f"{gone} of the {len(before)} images it was pretrained on are gone" if gone else ""
    return Overlap(common([source.path(int(index)) for index in test], there), why_not)


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
