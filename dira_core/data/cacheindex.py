"""What a cache folder holds, image by image: small files beside the pixels, sealed by a digest."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_type_hints

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dira_core.data.pyramid import SMALLEST_SIDE
from dira_core.errors import DataError
from dira_core.escaping import printable
from dira_core.files import write_atomic
from dira_core.source_options import CACHE

FORMAT = 1
"""Layout of a cache; another one is refused."""

INDEX = "index.safetensors"

Shape = tuple[int, ...]


class Entry(NamedTuple):
    """One image of a cache.

    Attributes:
        position: In the source.
        piece: Number of the file with its pixels.
        offset: Where it starts there, in bytes.
        bytes: Of a value: 1 or 2.
        channels: Of the image.
        depth: Number of planes of a volume; 0 for a flat image.
        height: In px.
        width: In px.
        low: The value that maps to 0.
        high: The value that maps to 1.
        thickness: Distance of planes in mm; NaN where not known, as the next two.
        tall: Height of a pixel in mm.
        wide: Width of a pixel in mm.
        spread: 1 where other numbers were spread over 16 bits.
        crc: CRC-32 of all its levels.
    """

    position: int
    piece: int
    offset: int
    bytes: int
    channels: int
    depth: int
    height: int
    width: int
    low: float
    high: float
    thickness: float
    tall: float
    wide: float
    spread: int
    crc: int

    @property
    def shape(self) -> Shape:
        """Channels and sides in px."""
        sides = (self.height, self.width)
        return (self.channels, self.depth, *sides) if self.depth else (self.channels, *sides)

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Size of a pixel along each axis in mm, or None."""
        sizes = (self.thickness, self.tall, self.wide)[0 if self.depth else 1 :]
        return None if math.isnan(sizes[-1]) else sizes


ENTRY = np.dtype(
    [(name, "<f8" if kind is float else "<i8") for name, kind in get_type_hints(Entry).items()]
)
"""How entries lie in the index."""

TYPES: dict[int, np.dtype] = {1: np.dtype("u1"), 2: np.dtype("<u2")}
"""Types of pixels, by the bytes of a value."""


class Header(BaseModel):
    """The file that makes a folder a cache: written last.

    Attributes:
        made_from: The source, its options and its fingerprint.
        images: Images in the cache.
        pieces: Size of each file of pixels, in bytes.
        index: SHA-256 of the index.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    made_from: dict[str, JsonValue]
    images: int = Field(ge=0)
    pieces: list[int]
    index: str


@dataclass(frozen=True)
class Index:
    """Everything about the images of a cache but their pixels.

    Attributes:
        entries: (N,) of `ENTRY`.
        names: What to call each image, N.
        left_out: Images that could not be read: position in the source, name, reason.
        columns: Numbers, one an image: labels, words, patients, splits; those that there are.
        texts: What the numbers of a column mean, where they mean a text.
    """

    entries: np.ndarray
    names: list[str]
    left_out: list[tuple[int, str, str]]
    columns: Mapping[str, np.ndarray]
    texts: Mapping[str, list[str]]

    def to_bytes(self) -> bytes:
        """Return the index as a safetensors file."""
        texts = {"names": self.names, "left_out": self.left_out, "texts": dict(self.texts)}
        arrays = {
            "entries": self.entries.view(np.uint8).reshape(len(self.entries), ENTRY.itemsize),
            "json": np.frombuffer(json.dumps(texts).encode("ascii"), np.uint8),
            **{f"column.{name}": column for name, column in self.columns.items()},
        }
        data: bytes = save(arrays)
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Index:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: The bytes are something else.
        """
        try:
            arrays = load(data)
            texts = json.loads(arrays.pop("json").tobytes())
            entries = arrays.pop("entries").reshape(-1).view(ENTRY)
            if not np.isin(entries["bytes"], list(TYPES)).all():
                raise ValueError("pixels of a type there is not")
            columns = {name.removeprefix("column."): array for name, array in arrays.items()}
            left_out = [tuple(entry) for entry in texts["left_out"]]
            return cls(entries, texts["names"], left_out, columns, texts["texts"])
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"no index of a cache: {error}") from error


def write(
    folder: Path, index: Index, pieces: list[int], made_from: Mapping[str, JsonValue]
) -> None:
    """Write index and header: from now on the folder is a cache."""
    data = index.to_bytes()
    write_atomic(folder / INDEX, data)
    header = Header(
        format=FORMAT,
        made_from=dict(made_from),
        images=len(index.entries),
        pieces=pieces,
        index=hashlib.sha256(data).hexdigest(),
    )
    write_atomic(folder / CACHE, header.model_dump_json(indent=1).encode())


def read_header(folder: Path) -> Header:
    """Read the header of a cache.

    Raises:
        DataError: There is none, it is damaged, or another version of dira wrote it.
    """
    name = printable(str(folder))
    try:
        found = json.loads((folder / CACHE).read_bytes())
        version = found["format"]
    except OSError as error:
        raise DataError(
            f"{name!r} is no cache: it has no {CACHE}; see `dira data cache`"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{CACHE} in {name!r} is damaged: build the cache again") from error
    if version != FORMAT:
        raise DataError(
            f"the cache {name!r} has format {version!r:.20}, this version of dira reads {FORMAT}: "
            "build it again"
        )
    try:
        return Header.model_validate(found)
    except ValidationError as error:
        raise DataError(f"{CACHE} in {name!r} is damaged: build the cache again") from error


def read_index(folder: Path, header: Header) -> Index:
    """Read the index of a cache, whole and as it was written.

    Raises:
        DataError: It is missing or damaged.
    """
    name = printable(str(folder))
    try:
        data = (folder / INDEX).read_bytes()
        if hashlib.sha256(data).hexdigest() != header.index:
            raise ValueError("another digest")
        return Index.from_bytes(data)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{INDEX} of the cache {name!r} is missing or damaged: build the cache again"
        ) from error


def piece_name(number: int) -> str:
    """Return what a file of pixels is called."""
    return f"pixels-{number:06d}.bin"


@functools.lru_cache(4096)
def layout(shape: Shape) -> tuple[tuple[int, Shape], ...]:
    """Return where each level of an image starts, in values, and its shape; the full one first."""
    places, start = [], 0
    channels, *sides = shape
    while True:
        places.append((start, (channels, *sides)))
        start += math.prod((channels, *sides))
        if min(sides) < 2 * SMALLEST_SIDE:
            return tuple(places)
        sides = [(side + 1) // 2 for side in sides]


def values(shape: Shape) -> int:
    """Return how many values all levels of an image have."""
    start, last = layout(shape)[-1]
    return start + math.prod(last)
