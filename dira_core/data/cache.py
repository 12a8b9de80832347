"""Images decoded once: a folder of pixels and their smaller levels, mapped into memory."""

from __future__ import annotations

import hashlib
import mmap
import zlib
from typing import Any

import numpy as np

from dira_core.data.cacheindex import (
    TYPES,
    Entry,
    Header,
    Index,
    layout,
    piece_name,
    read_header,
    read_index,
    values,
)
from dira_core.errors import DataError, RecipeError, did_you_mean
from dira_core.roles import Source
from dira_core.source_options import CacheOptions
from dira_core.types import Image


class CacheSource(Source):
    """The images of a cache; nothing of a file is read before it is cropped.

    It travels to workers as the path of its folder.

    Attributes:
        splits: Positions in `split_names`, one an image, or None.

    Raises:
        DataError: The folder is no cache, or damaged.
        RecipeError: The cache has no such split.
    """

    def __init__(self, options: CacheOptions) -> None:
        self._options = options
        self.header: Header = read_header(options.path)
        self.index: Index = read_index(options.path, self.header)
        self._rows = _of_split(self.index, options.split)
        self._pieces: dict[int, mmap.mmap] = {}
        columns = {name: column[self._rows] for name, column in self.index.columns.items()}
        self.labels, self.words = columns.get("labels"), columns.get("words")
        self.patients, self.splits = columns.get("patients"), columns.get("splits")
        self.classes = self.index.texts.get("labels")
        self.split_names = self.index.texts.get("splits", [])
        made = self.header.made_from
        self.reading = {key: made[key] for key in ("window", "spacing") if key in made}

    def __reduce__(self) -> tuple[Any, ...]:
        return CacheSource, (self._options,)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Image:
        """Map one image and its levels; it costs the same whatever their size.

        Raises:
            DataError: The file of its pixels is missing or cut short.
        """
        entry = self.entry(index)
        pixels = self._map(entry.piece)
        if not 0 <= entry.offset <= len(pixels) - values(entry.shape) * entry.bytes:
            raise DataError(f"{piece_name(entry.piece)} of the cache is cut short: build it again")
        full, *smaller = (
            np.ndarray(shape, TYPES[entry.bytes], pixels, entry.offset + start * entry.bytes)
            for start, shape in layout(entry.shape)
        )
        return Image(full, (entry.low, entry.high), entry.spacing, smaller)

    def entry(self, index: int) -> Entry:
        """Return what the index says of an image."""
        return Entry(*self.index.entries[self._rows[index]].tolist())

    def intact(self, index: int) -> bool:
        """Say whether the pixels of an image, in all levels, are those that were written."""
        entry = self.entry(index)
        last = entry.offset + values(entry.shape) * entry.bytes
        try:
            data = memoryview(self._map(entry.piece))[entry.offset : last]
        except DataError:
            return False
        return zlib.crc32(data) == entry.crc

    def name(self, index: int) -> str:
        """Return what the source called the image."""
        return self.index.names[int(self._rows[index])]

    def fingerprint(self) -> str:
        """Return a digest of the index, which holds a checksum of every image, and of the split."""
        offered = f"cache {self.header.index} {self._options.split}"
        return hashlib.blake2b(offered.encode(), digest_size=16).hexdigest()

    def _map(self, piece: int) -> mmap.mmap:
        """Map a file of pixels, once."""
        if piece not in self._pieces:
            path = self._options.path / piece_name(piece)
            try:
                with path.open("rb") as file:
                    self._pieces[piece] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{path.name} of the cache is missing or empty: build it again"
                ) from error
        return self._pieces[piece]


def _of_split(index: Index, split: str | None) -> np.ndarray:
    """Return the rows of a split, or all where none is asked for."""
    if split is None:
        return np.arange(len(index.entries))
    known = index.texts.get("splits", [])
    if split not in known:
        raise RecipeError(
            f"the cache has no split {split!r}{did_you_mean(split, known)}; it has: "
            f"{', '.join(known) or 'none'}"
        )
    rows: np.ndarray = np.flatnonzero(index.columns["splits"] == known.index(split))
    return rows
