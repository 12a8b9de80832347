"""The images listed in a CSV file."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path

import numpy as np

from dira_core import digests
from dira_core.data.folder import FileSource
from dira_core.errors import DataError, RecipeError, did_you_mean
from dira_core.escaping import printable
from dira_core.source_options import ManifestOptions

SYNONYMS = {"patient": ("patient", "patient_id", "patientid", "patient id")}
"""What else a column may be called; the first of these that a file has is taken."""


class ManifestSource(FileSource):
    """One image a line of a CSV file, in its order; paths are absolute or start at its folder.

    Attributes:
        classes: Texts of the label column over all splits, sorted; a label is a position in it,
            -1 where the column is empty. None without a label column.
        patients: Digests of the texts of a column of patients, -1 where it is empty.
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
        patient, part = find_column(header, "patient"), find_column(header, "split")
        if patient is not None:
            self.patients = digests.of_texts(list(_texts(lines, patient)))
        if part is not None:
            known = list(_texts(lines, part))
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
            _check_commas(file.readline(), name)
            file.seek(0)
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


def _check_commas(header: str, name: str) -> None:
    """Refuse a file whose columns something else separates, as some programs for tables do."""
    others = {";": "';'", "\t": "tabs"}
    used = [said for mark, said in others.items() if mark in header and "," not in header]
    if used:
        raise DataError(
            f"the columns of manifest {name!r} are separated by {used[0]}, dira reads commas: "
            "save it with commas"
        )


def line_number(path: Path, wanted: Line) -> int:
    """Return the number of the first line of a CSV file with these cells, counted from 1."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        return next(reader.line_num for line in reader if line == wanted)


def find_column(header: Sequence[str], name: str) -> int | None:
    """Return where a column is, in upper or lower case or by a synonym; None if it is nowhere.

    Raises:
        RecipeError: Several columns have that name.
    """
    for known in SYNONYMS.get(name, (name,)):
        found = [i for i, each in enumerate(header) if each.casefold() == known.casefold()]
        if len(found) > 1:
            alike = " and ".join(repr(header[i]) for i in found)
            raise RecipeError(f"the manifest has several columns {alike}: rename all but one")
        if found:
            return found[0]
    return None


def column_of(header: Sequence[str], name: str, key: str) -> int:
    """Return where a column is.

    Args:
        header: Names of the columns.
        name: Of the one that is wanted, in upper or lower case.
        key: Of the recipe, that chose it.

    Raises:
        RecipeError: There is none of that name, or several.
    """
    found = find_column(header, name)
    if found is not None:
        return found
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
