"""The images listed in a CSV file."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from dira_core.builtins import ManifestOptions
from dira_core.data.folder import FileSource, printable
from dira_core.errors import DataError, RecipeError, did_you_mean


class ManifestSource(FileSource):
    """One image a line of a CSV file, in its order; paths are absolute or start at its folder.

    Attributes:
        classes: Texts of the label column over all splits, sorted; a label is a position in it,
            -1 where the column is empty. None without a label column.

    Raises:
        DataError: The file is missing, no CSV, or has lines without an image path.
        RecipeError: A column or a split does not exist.
    """

    classes: list[str] | None = None

    def __init__(self, options: ManifestOptions) -> None:
        header, lines = read_csv(options.path)
        image = column_of(header, options.image, "data.image")
        kept = _of_split(header, lines, options.split)
        paths = []
        for number, line in kept:
            if not line[image].strip():
                raise DataError(f"line {number} of the manifest names no image: give it a path")
            paths.append(line[image].strip())
        if options.label is not None:
            label = column_of(header, options.label, "data.label")
            self.classes = sorted({line[label].strip() for _, line in lines} - {""})
            position = {name: index for index, name in enumerate(self.classes)}
            self.labels = np.array(
                [position.get(line[label].strip(), -1) for _, line in kept], np.int64
            )
        super().__init__(options.path.parent, paths, options.window, Counter())


Line = tuple[int, list[str]]
"""The number of a line in its file, and its cells."""


def read_csv(path: Path) -> tuple[list[str], list[Line]]:
    """Return the header and the lines below it, each as long as the header.

    Raises:
        DataError: The file is missing, no CSV, empty, or has lines of other lengths.
    """
    name = printable(str(path))
    if path.exists() and not path.is_file():
        raise DataError(f"manifest {name!r} is not a regular file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            lines = [(reader.line_num, line) for line in reader if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"manifest {name!r} is no CSV file in UTF-8: save it as one") from error
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise DataError(f"manifest {name!r}: {reason}") from error
    if not header or not lines:
        raise DataError(f"manifest {name!r} has no lines: it needs a header and one line an image")
    for number, line in lines:
        if len(line) != len(header):
            raise DataError(
                f"line {number} of manifest {name!r} has {len(line)} cells, its header has "
                f"{len(header)}: quote cells that hold a comma"
            )
    return header, lines


def column_of(header: list[str], name: str, key: str) -> int:
    """Return where a column is.

    Args:
        header: Names of the columns.
        name: Of the one that is wanted.
        key: Of the recipe, that chose it.

    Raises:
        RecipeError: There is none of that name, or several.
    """
    if header.count(name) == 1:
        return header.index(name)
    if name in header:
        raise RecipeError(f"the manifest has several columns {name!r}: rename all but one")
    columns = ", ".join(printable(column) for column in header)
    raise RecipeError(
        f"the manifest has no column {name!r}{did_you_mean(name, header)}; set {key} to "
        f"one of: {columns}"
    )


def _of_split(header: list[str], lines: list[Line], split: str | None) -> list[Line]:
    """Return the lines of a split, or all where none is asked for."""
    if split is None:
        return lines
    column = column_of(header, "split", "data.split")
    kept = [line for line in lines if line[1][column].strip() == split]
    if not kept:
        known = sorted({line[column].strip() for _, line in lines})
        raise RecipeError(
            f"no line of the manifest has split {split!r}{did_you_mean(split, known)}; "
            f"it has: {', '.join(map(printable, known[:10]))}"
        )
    return kept
