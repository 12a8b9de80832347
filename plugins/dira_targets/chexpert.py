"""CheXpert as Stanford distributes it; tested on its validation set of 234 images, as published."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from dira_core import DataError, Draws, Labels
from dira_targets.files import columns, first_file, source, tally
from dira_targets.options import CheXpertOptions

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
SCORED = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
MEANS = {"1.0": 1.0, "1": 1.0, "0.0": 0.0, "0": 0.0, "": 0.0, "-1.0": -1.0, "-1": -1.0}
"""What a cell says; nothing is a finding that was not mentioned."""

BETWEEN = {"lsr-ones": (0.55, 0.85), "lsr-zeros": (0.0, 0.3), "ones": (1, 1), "zeros": (0, 0)}
"""Pham et al., arXiv:1911.06475: labels smoothed towards one or zero."""


def read(options: CheXpertOptions, window: Any) -> Labels:
    """Read train.csv and valid.csv; images that are not there are left out.

    Raises:
        DataError: A file is missing or has another content, or no image is there.
    """
    rows, split, missing = [], [], 0
    for part, name in (("train", "train.csv"), ("test", "valid.csv")):
        table = first_file(options.path, name)
        for path, view, *cells in columns(table, "Path", "Frontal/Lateral", *FINDINGS):
            if options.views == "frontal" and view != "Frontal":
                continue
            inside = path.partition("/")[2]  # the first folder is the one that holds the file
            if (options.path / inside).is_file():
                rows.append((inside, cells))
                split.append(part)
            else:
                missing += 1
    if not rows:
        raise DataError(f"no image of train.csv is below {str(options.path)!r}: unpack it there")
    labels = np.array([[_value(cell) for cell in cells] for _, cells in rows])
    unsure = labels == -1
    notes = [
        tally("CheXpert", split),
        f"uncertain: {unsure.sum():,} of {labels.size:,} labels, {options.uncertain}",
    ]
    notes += [f"left out: {missing:,} images that are not there"] if missing else []
    return Labels(
        source(options.path, [path for path, _ in rows], window),
        FINDINGS,
        split,
        [_patient(path) for path, _ in rows],
        settled(labels, options.uncertain),
        exclusive=False,
        scored=SCORED,
        notes=notes,
    )


def settled(labels: np.ndarray, policy: str) -> np.ndarray:
    """Replace -1 by what a policy says, (N, K); random values depend on the position alone."""
    if policy == "ignore":
        chosen = np.full(labels.shape, np.nan)
    else:
        low, high = BETWEEN[policy]
        draws = Draws(torch.arange(len(labels)), seed=0, path="chexpert/uncertain")
        uniform = [draws.uniform(name).numpy() for name in FINDINGS]
        chosen = low + (high - low) * np.stack(uniform, 1).astype(np.float64)
    return np.where(labels == -1, chosen, labels)


def _value(cell: str) -> float:
    if cell not in MEANS:
        raise DataError(f"a label of CheXpert is 1.0, 0.0, -1.0 or empty, got {cell!r:.40}")
    return MEANS[cell]


def _patient(path: str) -> str:
    found = re.search(r"patient\d+", path)
    if found is None:
        raise DataError(f"a path of CheXpert names its patient, got {path!r:.80}")
    return found[0]
