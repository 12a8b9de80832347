"""ChestX-ray14 as NIH distributes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from dira_core import DataError, Labels
from dira_targets.files import columns, first_file, found_below, lines_of, source, tally
from dira_targets.options import ChestXray14Options

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""In the order of the paper."""

NOTHING = "No Finding"


def read(options: ChestXray14Options, window: Any) -> Labels:
    """Read labels and official parts; images that are not there, or in no list, are left out.

    Raises:
        DataError: A file is missing, has another content, or no image is there.
    """
    folder = options.path
    table = first_file(folder, "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
    lists = {"train": "train_val_list.txt", "test": "test_list.txt"}
    part = {
        image: name for name, file in lists.items() for image in lines_of(first_file(folder, file))
    }
    place = found_below(folder, ".png")
    entries = columns(table, "Image Index", "Finding Labels", "Patient ID")
    kept = [entry for entry in entries if entry[0] in place and entry[0] in part]
    if not kept:
        raise DataError(
            f"no image of {table.name} is below {str(folder)!r}: unpack images_*.tar.gz"
        )
    split = [part[image] for image, _, _ in kept]
    missing = sum(image not in place for image, _, _ in entries)
    unlisted = len(entries) - missing - len(kept)
    notes = [tally("ChestX-ray14", split)]
    notes += [f"left out: {missing:,} images that are not there"] if missing else []
    notes += [f"left out: {unlisted:,} images that are in no list"] if unlisted else []
    return Labels(
        source(folder, [place[image] for image, _, _ in kept], window),
        FINDINGS,
        split,
        [str(int(patient)) for _, _, patient in kept],
        np.stack([_labels(text) for _, text, _ in kept]),
        exclusive=False,
        notes=notes,
    )


def _labels(text: str) -> np.ndarray:
    names = set(text.split("|")) - {NOTHING}
    unknown = names.difference(FINDINGS)
    if unknown:
        raise DataError(f"Data_Entry_2017.csv has the unknown finding {min(unknown)!r:.40}")
    return np.array([float(name in names) for name in FINDINGS])
