"""A study small enough to be carried out many times."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kit import kit
from PIL import Image

from dira_core.study.plan import Study, read_study

FILE = """
arms = ["random", "di"]
seeds = [0, 1]

[pretrain]
preset = "none"
data = "small-set"
set = [
    "backbone=small-net", "discriminator=simsiam", "discriminator.dim=16",
    "discriminator.hidden=8", "restorer=unet", "restorer.widths=[8, 8, 8]", "views.size=16",
    "train.epochs=2", "train.batch_size=4", "train.precision=fp32",
]

[recipes.small]

[targets.discs]
target = "csv"
data = "labels.csv"
set = ["target.label=finding", "training.epochs=2", "training.batch_size=8", "precision=fp32"]
ways = ["knn"]
fractions = [0.5]
"""


@pytest.fixture
def file(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Return the file of a study of six jobs, its images beside it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with (tmp_path / "labels.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["image", "patient", "split", "finding"])
        for i in range(48):
            bright = i // 2 % 2
            pixels = rng.integers(0, 60 + 60 * bright, (16, 16)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
            part = "train" if i < 32 else "test"
            writer.writerow([f"{i:02}.png", f"p{i // 2}", part, "bright" if bright else "dim"])
    (tmp_path / "small.toml").write_text(FILE)
    with kit(tmp_path_factory.mktemp("kit")):
        yield tmp_path / "small.toml"


@pytest.fixture
def plan(file: Path) -> Study:
    """Return what the file says."""
    return read_study(file)
