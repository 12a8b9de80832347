"""The Montgomery County set: radiographs with a mask of each lung."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dira_core import DataError, Masks, mask_pixels
from dira_targets.files import found_below, source
from dira_targets.options import MontgomeryOptions

IMAGES, LEFT, RIGHT = "CXR_png", "ManualMask/leftMask", "ManualMask/rightMask"


@dataclass(frozen=True)
class Lungs(Masks):
    """Masks in two files.

    Attributes:
        files: Of the left and of the right lung, in the order of the images.
    """

    files: Sequence[tuple[Path, Path]]

    def mask(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read both; one class is their union. Raises as the base class says."""
        left, right = (mask_pixels(path) > 0 for path in self.files[index])
        if left.shape != right.shape:
            raise DataError(f"the masks of {self.source.name(index)} differ in size")
        masks = [left, right] if len(self.classes) == 2 else [left | right]
        return np.stack(masks), np.ones(left.shape, bool)


def read(options: MontgomeryOptions, window: Any) -> Lungs:
    """Read images that have both masks; each shows a patient of its own.

    Raises:
        DataError: There is none.
    """
    folder = options.path
    images, left, right = (found_below(folder / part, ".png") for part in (IMAGES, LEFT, RIGHT))
    kept = [name for name in images if name in left and name in right]
    if not kept:
        raise DataError(
            f"no image in {str(folder / IMAGES)!r} has masks of its name in {LEFT} and {RIGHT}: "
            "give the folder MontgomerySet (--data)"
        )
    notes = [f"Montgomery: {len(kept)} images with both masks"]
    notes += [f"left out: {len(images) - len(kept)} without"] if len(kept) < len(images) else []
    return Lungs(
        source(folder, [f"{IMAGES}/{images[name]}" for name in kept], window),
        ("lungs",) if options.lungs == "together" else ("left lung", "right lung"),
        None,
        [""] * len(kept),
        [(folder / LEFT / left[name], folder / RIGHT / right[name]) for name in kept],
        notes=notes,
    )
