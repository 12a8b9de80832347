"""Instances of visual words as a source."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dira_core import DataError, Image, Source
from dira_transvw import HEADER, WordsOptions

TABLE = "words.csv"
CUBES = re.compile(r"cubes/\d{5,}\.safetensors")
"""What the table may name: nothing outside of its folder."""

WHITE = 65535
"""What is 1 in a cube; 0 is 0."""


def read_header(folder: Path) -> dict[str, Any]:
    """Return what is said of all words of a folder.

    Raises:
        DataError: It holds none.
    """
    try:
        header: dict[str, Any] = json.loads((folder / HEADER).read_text("utf-8"))
        if header["source"] == "words" and header["version"] == 1:
            return header
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(
        f"folder {str(folder)!r} holds no finished words: make some by `dira words discover`"
    )


def read_table(folder: Path) -> list[dict[str, str]]:
    """Return the lines of a folder's table, one an instance.

    Raises:
        DataError: It is missing or damaged.
    """
    try:
        with (folder / TABLE).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{TABLE} of {str(folder)!r} cannot be read: make the words again"
        ) from error


class WordsSource(Source):
    """One cube an instance of a word.

    Attributes:
        words: Number of the word of each.
        labels: The same, for the probe that tells how well frozen features know them.
        volumes: Name of what each was cut from.

    Raises:
        DataError: The folder holds no words, or none of this split.
    """

    def __init__(self, options: WordsOptions) -> None:
        self.folder = options.path
        self.header = read_header(self.folder)
        table = read_table(self.folder)
        plan = self.header.get("plan", {}).get("reading", {})
        self.reading = {key: plan[key] for key in ("window", "spacing") if key in plan}
        self._lines = [line for line in table if options.split in ("all", line.get("split"))]
        if not self._lines:
            raise DataError(
                f"no instance of split {options.split!r} in {str(self.folder)!r}: set "
                "data.split=train, or hold patients out when you discover words"
            )
        try:
            self.words = self.labels = np.array([int(line["word"]) for line in self._lines])
            self.patients = np.array([int(line["patient"]) for line in self._lines])
            self.volumes = [line["volume"] for line in self._lines]
            numbers = [line.get("digest") for line in self._lines]
            self._digests = [int(number) if number else None for number in numbers]
            self.classes = [f"word {number}" for number in range(self.words.max() + 1)]
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{TABLE} of {str(self.folder)!r} is damaged: make it again") from error

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, index: int) -> Image:
        """Read one cube; raises as `Source.read` does."""
        line = self._lines[index]
        try:
            if not CUBES.fullmatch(line["file"]):
                raise ValueError("no file of cubes")
            cube = read_cube(self.folder / line["file"], int(line["row"]))
        except (OSError, ValueError, IndexError, SafetensorError) as error:
            raise DataError("the file of cubes is missing or damaged") from error
        return Image(cube, (0, WHITE))

    def name(self, index: int) -> str:
        line = self._lines[index]
        return f"word {line['word']} in {line['volume']}"

    def digest(self, index: int) -> int | None:
        """Return that of the volume a cube was cut from."""
        return self._digests[index]

    def fingerprint(self) -> str:
        """Return a digest of header and table."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([self.header, self._lines]).encode())
        return digest.hexdigest()


def read_cube(path: Path, row: int) -> np.ndarray:
    """Read one cube of a volume, (C, D, H, W) uint16, and no other.

    Raises:
        ValueError: The file holds something else.
    """
    with safe_open(path, framework="numpy") as file:
        if "cubes" not in file.keys():  # noqa: SIM118 (it is no mapping)
            raise ValueError("no cubes")
        cubes = file.get_slice("cubes")
        cube: np.ndarray = cubes[row]
    if cube.dtype != np.uint16 or cube.ndim != 4:
        raise ValueError("no cubes")
    return cube
