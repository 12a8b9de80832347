"""LiTS: the liver, with its tumours, in CTs of the abdomen."""

from __future__ import annotations

import re
from typing import Any

from dira_core import DataError, FileMasks
from dira_targets.files import found_below, source, tally
from dira_targets.options import LitsOptions

LAST = {"train": 99, "validation": 114}
"""Numbers of the last case of each part, as in Models Genesis; the rest is tested."""


def read(options: LitsOptions, window: Any) -> FileMasks:
    """Pair volumes and segmentations by their numbers.

    Raises:
        DataError: There is none.
    """
    folder = options.path
    found = found_below(folder, ".nii") | found_below(folder, ".nii.gz")
    by_number: dict[str, dict[int, str]] = {"volume": {}, "segmentation": {}}
    for name, place in found.items():
        match = re.fullmatch(r"(volume|segmentation)-(\d+)\.nii(?:\.gz)?", name)
        if match:
            by_number[match[1]][int(match[2])] = place
    images, masks = by_number.values()
    numbers = sorted(images.keys() & masks.keys())
    if not numbers:
        raise DataError(
            f"no volume-N.nii with segmentation-N.nii below {str(folder)!r}: unpack both batches"
        )
    split = [next((part for part, last in LAST.items() if n <= last), "test") for n in numbers]
    alone = len(images.keys() ^ masks.keys())
    notes = [tally("LiTS", split)]
    notes += [f"left out: {alone} files without their volume or segmentation"] if alone else []
    return FileMasks(
        source(folder, [images[n] for n in numbers], window),
        ("liver",),
        split,
        [f"case {n}" for n in numbers],
        [folder / masks[n] for n in numbers],
        {},
        None,
        notes=notes,
    )
