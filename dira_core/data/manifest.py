"""The images listed in a CSV file."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from dira_core import digests
from dira_core.data.folder import FileSource
from dira_core.errors import DataError, RecipeError, did_you_mean
from dira_core.escaping import printable
from dira_core.source_options import ManifestOptions


class ManifestSource(FileSource):
    """One image a line of a CSV file, in its order; paths are absolute or start at its folder.

    Attributes:
        classes: Texts of the label column over all splits, sorted; a label is a position in it,
            -1 where the column is empty. None without a label column.
        patients: Digests of the texts of a column called patient, -1 where it is empty.
        splits: Positions in `split_names` of the texts of a column called split, or None.

    Raises:
        DataError: The file is missing, no CSV, or has lines without an image path.
        RecipeError: A column or a split does not exist.
    """

    splits: np.ndarray | None = None
    split_names: list[str]

    def __init__(self, options: ManifestOptions) -> None:
        header, lines = read_csv(options.path)
        image = column_of(header, options.image, "data.image")
        names = None if options.label is None else column_of(header, options.label, "data.label")
        if names is not None:
            self.classes = sorted(set(_texts(lines, names)) - {""})
        lines = _of_split(header, lines, options.split)
        paths = list(_texts(lines, image))
        if "" in paths:
            number = line_number(options.path, lines[paths.index("")])
            raise DataError(f"line {number} of the manifest names no image: give it a path")
        if names is not None:
            self.labels = _numbers(_texts(lines, names), self.classes or [])
        if header.count("patient") == 1:
            known = list(_texts(lines, header.index("patient")))
            self.patients = digests.of_texts(known)
        if header.count("split") == 1:
            known = list(_texts(lines, header.index("split")))
            self.split_names = sorted(set(known))
            self.splits = _numbers(known, self.split_names)
        super().__init__(options.path.parent, paths, options, Counter())


Line = list[str]
"""The cells of a line."""


def _texts(lines: Iterable[Line], column: int) -> Iterator[str]:
    return map(str.strip, map(itemgetter(column), lines))


def _numbers(texts: Iterable[str], known: list[str]) -> np.ndarray:
    """Return the position of each text among the known ones, -1 for others: (N,) int64."""
    position = {text: number for number, text in enumerate(known)}
    return np.array([position.get(text, -1) for text in texts], np.int64)


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
            lines = list(filter(None, reader))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"manifest {name!r} is no CSV file in UTF-8: save it as one") from error
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise DataError(f"manifest {name!r}: {reason}") from error
    if not header or not lines:
        raise DataError(f"manifest {name!r} has no lines: it needs a header and one line an image")
    if set(map(len, lines)) != {len(header)}:
        odd = next(line for line in lines if len(line) != len(header))
        raise DataError(
            f"line {line_number(path, odd)} of manifest {name!r} has {len(odd)} cells, its header "
            f"has {len(header)}: quote cells that hold a comma"
        )
    return header, lines


def line_number(path: Path, wanted: Line) -> int:
    """Return the number of the first line of a CSV file with these cells, counted from 1."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        return next(reader.line_num for line in reader if line == wanted)


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
    kept = [line for line in lines if line[column].strip() == split]
    if not kept:
        known = sorted(set(_texts(lines, column)))
        raise RecipeError(
            f"no line of the manifest has split {split!r}{did_you_mean(split, known)}; "
            f"it has: {', '.join(map(printable, known[:10]))}"
        )
    return kept
