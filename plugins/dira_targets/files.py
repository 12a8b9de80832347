"""What the layouts have in common: a table with known columns, files found by their names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dira_core import DataError, FileSource, VolumeOptions, find_column, read_csv


def first_file(folder: Path, *names: str) -> Path:
    """Return the first of several files that exists.

    Raises:
        DataError: None does.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"no {' or '.join(names)} in {str(folder)!r}: give the folder that holds it (--data), see "
        "`dira targets` for all it must hold"
    )


def columns(path: Path, *names: str) -> list[tuple[str, ...]]:
    """Return the cells of some columns, in upper or lower case, line by line.

    Raises:
        DataError: The file cannot be read, or lacks one of them.
    """
    header, lines = read_csv(path)
    places = {name: find_column(header, name) for name in names}
    missing = [name for name, place in places.items() if place is None]
    if missing:
        raise DataError(f"{path.name} has no column {', '.join(missing)}: is it the original file?")
    chosen = [place for place in places.values() if place is not None]
    return [tuple(line[place].strip() for place in chosen) for line in lines]


def lines_of(path: Path) -> set[str]:
    """Return the lines of a text file without what surrounds them."""
    return set(path.read_text(encoding="utf-8").split())


def found_below(folder: Path, suffix: str) -> dict[str, str]:
    """Return where files of a suffix lie, relative to the folder, by their names; the first counts.

    Links to folders are followed.
    """
    found: dict[str, str] = {}
    for place in sorted(all_below(folder, suffix)):
        found.setdefault(os.path.basename(place), place)
    return found


def all_below(folder: Path, suffix: str) -> Iterator[str]:
    """Yield where files of a suffix lie, relative to the folder, whatever their names."""
    for place, _, names in os.walk(folder, followlinks=True):
        relative = os.path.relpath(place, folder)
        yield from (
            os.path.normpath(os.path.join(relative, name))
            for name in names
            if name.lower().endswith(suffix) and not name.startswith(".")
        )


def source(folder: Path, paths: Sequence[str], window: Any) -> FileSource:
    """Return the images at some paths relative to a folder."""
    return FileSource(folder, paths, VolumeOptions(window=window), Counter())


def tally(name: str, of: Iterable[str]) -> str:
    """Say how many of each there are: "name: 3 train, 2 test"."""
    counted = ", ".join(f"{n:,} {what or 'in no part'}" for what, n in Counter(of).items())
    return f"{name}: {counted}"
