"""LUNA16: which candidates are nodules."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from dira_core import DataError, Labels
from dira_targets.candidates import LPS, Listed, labelled, numbers
from dira_targets.files import columns, first_file, found_below, source
from dira_targets.options import Luna16Options

PARTS = {**dict.fromkeys("01234", "train"), **dict.fromkeys("56", "validation")}
"""Of subsets, as in Models Genesis; 7 to 9 are tested."""


def read(options: Luna16Options, window: Any) -> Labels:
    """Read candidates of the volumes that are there.

    Raises:
        DataError: A file is missing or has another content, or no volume is there.
    """
    table = first_file(options.path, "candidates_V2.csv", "candidates.csv")
    rows = columns(table, "seriesuid", "coordX", "coordY", "coordZ", "class")
    place = found_below(options.path, ".mhd")
    rows = [row for row in rows if f"{row[0]}.mhd" in place]
    series = sorted({row[0] for row in rows})
    if not series:
        raise DataError(f"no volume of {table.name} is below {str(options.path)!r}: unpack subset*")
    number = {each: n for n, each in enumerate(series)}
    parts = {each: _part(place[f"{each}.mhd"]) for each in series}
    listed = Listed(
        source(options.path, [place[f"{each}.mhd"] for each in series], window),
        [number[row[0]] for row in rows],
        numbers([row[1:4] for row in rows]) * LPS,
        np.array([row[4] == "1" for row in rows]),
        [parts[row[0]] for row in rows],
        [row[0] for row in rows],
    )
    return labelled("LUNA16", listed, options)


def _part(path: str) -> str:
    subset = re.search(r"subset(\d)", path)
    if subset is None:
        raise DataError("a volume of LUNA16 lies in one of subset0 to subset9: keep its folders")
    return PARTS.get(subset[1], "test")
