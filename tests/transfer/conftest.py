"""Labelled images small enough to fine-tune on in a second."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kit import kit
from PIL import Image


@pytest.fixture
def small_net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Offer the backbone `small-net`."""
    with kit(tmp_path_factory.mktemp("kit")):
        yield


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Return a CSV file: 48 images of 24 patients, a disc in each, bright or dim, and its mask."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:32, :32]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patient", "split", "finding", "bright", "mask"])
        for i in range(48):
            bright = i // 2 % 2
            y, x = rng.integers(10, 22, 2)
            disc = (rows - y) ** 2 + (cols - x) ** 2 < 36
            pixels = rng.integers(0, 60, (32, 32)) + disc * (80 + 80 * bright)
            names = f"{i:02}.png", f"{i:02}-mask.png"
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / names[0])
            Image.fromarray((disc * 255).astype(np.uint8)).save(tmp_path / names[1])
            part, patient = ("train" if i < 32 else "test"), f"p{i // 2}"
            finding = "bright" if bright else "dim"
            writer.writerow([names[0], patient, part, finding, bright, names[1]])
    return tmp_path / "labels.csv"
