"""Pieces of a cache: a file of pixels and, once that is on disk, a small file about it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from dira_core.data.building import Parts, appearing
from dira_core.data.cacheindex import ENTRY, TYPES, Entry, Index, piece_name, values
from dira_core.data.crops import reduce_channels
from dira_core.data.images import read_image
from dira_core.data.pyramid import levels
from dira_core.errors import DataError
from dira_core.files import write_atomic
from dira_core.types import Image

if TYPE_CHECKING:
    from dira_core.roles import Source

PIECE, VOLUMES = 128, 8
"""Images, and volumes, of a piece: what is done again after a kill, at most, by each worker."""

ALIGNED = 8
"""An image starts at a multiple of this many bytes."""

DEEP = 65535.0
"""What other numbers than 8 and 16 bits are stored as: 0 to this, over their window."""


def piece_of(source: Source) -> int:
    """Return how many images of a source make up a piece, by what the first readable one is."""
    for position in range(min(PIECE, len(source))):
        try:
            return VOLUMES if read_image(source, position).pixels.ndim > 3 else PIECE
        except DataError:
            continue
    return PIECE


def positions(source: Source, number: int, piece: int) -> range:
    """Return which images of a source make up a piece of so many."""
    return range(number * piece, min((number + 1) * piece, len(source)))


def part_of(folder: Path, number: int) -> Path:
    """Return the small file that says a piece is whole."""
    return folder / f"piece-{number:06d}.part"


class Pieces(Parts):
    """Write pieces of a cache, one request each.

    Args:
        source: Where images come from.
        folder: Of the cache.
        grey: Whether colour becomes luminance.
        piece: Images of a piece.
    """

    def __init__(self, source: Source, folder: Path, grey: bool, piece: int) -> None:
        self._piece = piece
        self._source = source
        self._folder = folder
        self._grey = grey

    def images(self, number: int) -> int:
        """Return how many images of the source make up a piece."""
        return len(self.positions(number))

    def positions(self, number: int) -> range:
        """Return which images of the source make up a piece."""
        return positions(self._source, number, self._piece)

    def write(self, number: int) -> None:
        """Write the pixels of a piece, then what is known of them; one image is in memory."""
        entries, names, left_out = [], [], []
        path = self._folder / piece_name(number)
        with appearing(path) as file:
            for position in self.positions(number):
                name = self._source.name(position)
                try:
                    image = read_image(self._source, position)
                    entries.append(append(file, image, self._grey, position, number))
                    names.append(name)
                except DataError as error:
                    left_out.append((position, name, str(error)))
        index = Index(np.array(entries, ENTRY), names, left_out, {}, {})
        write_atomic(part_of(self._folder, number), index.to_bytes())


def append(file: BinaryIO, image: Image, grey: bool, position: int, piece: int) -> Entry:
    """Write an image and its smaller levels at the end of a piece.

    Raises:
        DataError: It cannot be stored.
    """
    kept = stored(image, grey)
    offset, crc = file.tell(), 0
    for level in (kept.pixels, *levels(kept.pixels)):
        data = np.ascontiguousarray(level).data
        crc = zlib.crc32(data, crc)
        file.write(data)
    file.write(bytes(-file.tell() % ALIGNED))
    channels, *sides = kept.pixels.shape
    depth, height, width = (0, *sides)[-3:]
    thickness, tall, wide = (np.nan, *(kept.spacing or (np.nan, np.nan)))[-3:]
    return Entry(
        position=position,
        piece=piece,
        offset=offset,
        bytes=kept.pixels.itemsize,
        channels=channels,
        depth=depth,
        height=height,
        width=width,
        low=kept.window[0],
        high=kept.window[1],
        thickness=thickness,
        tall=tall,
        wide=wide,
        spread=int(kept.window != image.window),
        crc=crc,
    )


def stored(image: Image, grey: bool) -> Image:
    """Return an image as a cache holds it: 8 and 16 bits as they are.

    All other numbers are cut off at their window and spread over 16 bits.

    Raises:
        DataError: It has values that are not finite, or neither two nor three axes.
    """
    pixels = reduce_channels(image.pixels, 1) if grey else image.pixels
    if pixels.ndim not in (3, 4):
        raise DataError(f"{pixels.ndim - 1} axes, where a cache holds images and volumes")
    if pixels.dtype.kind == "u" and pixels.itemsize <= 2:
        return Image(pixels.astype(TYPES[pixels.itemsize]), image.window, image.spacing)
    if not np.isfinite(pixels).all():
        raise DataError("pixels that are not finite")
    low, high = image.window
    part = (pixels.astype(np.float64) - low) / ((high - low) or np.inf)
    deep = np.rint(np.clip(part, 0, 1) * DEEP).astype(TYPES[2])
    return Image(deep, (0.0, DEEP), image.spacing)


def read_piece(folder: Path, number: int) -> Index | None:
    """Return what is known of a finished piece, or None: it is missing, or damaged."""
    try:
        index = Index.from_bytes(part_of(folder, number).read_bytes())
        with (folder / piece_name(number)).open("rb") as file:
            return None if any(_damaged(file, index)) else index
    except (OSError, ValueError):
        return None


def _damaged(file: BinaryIO, index: Index) -> Iterator[bool]:
    """Yield for each image of a piece whether its pixels are not those that were written."""
    for row in index.entries:
        entry = Entry(*row.tolist())
        file.seek(entry.offset)
        length = values(entry.shape) * entry.bytes
        data = file.read(length)
        yield len(data) != length or zlib.crc32(data) != entry.crc
