"""Decode a source once, into a folder that `CacheSource` maps into memory.

The pieces of the cache come first, index and header last; a build that was killed goes on after the
pieces that are whole.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dira_core.data import cacheindex
from dira_core.data.building import PLAN, begin, owned, write_parts
from dira_core.data.cache import CacheSource
from dira_core.data.cacheindex import Index, piece_name, values
from dira_core.data.images import read_image
from dira_core.data.manifest import ManifestSource
from dira_core.data.pieces import Pieces, part_of, piece_of, read_piece, stored
from dira_core.errors import DataError, ResourceError
from dira_core.source_options import CacheOptions, is_cache

if TYPE_CHECKING:
    from dira_core.roles import Source

SAMPLE = 16
"""Images read beforehand, to know how much space all of them will take."""


def build(
    source: Source,
    folder: Path,
    made_from: Mapping[str, Any],
    *,
    grey: bool = False,
    workers: int = 0,
    tick: Callable[[int], object] = lambda images: None,
) -> CacheSource:
    """Write a cache of a source, or what is still missing of it.

    Args:
        source: Where images come from.
        folder: Of the cache; made when it is not there.
        made_from: What the pixels depend on, as JSON: another one than that of a cache or a piece
            in the folder is refused.
        grey: Whether colour becomes luminance.
        workers: Processes that read; 0 reads here.
        tick: Called with a number of images that are done.

    Raises:
        RunFolderError: The folder is in use, or holds something else.
        DataError: No image can be read, or a worker died.
        ResourceError: There is not enough space, or a worker was killed, mostly for memory.
    """
    given = {"fingerprint": source.fingerprint(), "images": len(source), "grey": grey}
    piece = piece_of(source)
    wanted = json.loads(json.dumps({**made_from, **given, "piece": piece}))
    with owned(folder):
        complete = cacheindex.read_header(folder).made_from if is_cache(folder) else None
        begin(folder, wanted, complete)
        if complete is None:
            numbers = range(-(-len(source) // piece))
            missing = [number for number in numbers if read_piece(folder, number) is None]
            pieces = Pieces(source, folder, grey, piece)
            _check_space(source, folder, grey, [i for n in missing for i in pieces.positions(n)])
            tick(sum(pieces.images(number) for number in set(numbers) - set(missing)))
            write_parts(pieces, missing, workers, tick)
            _complete(source, folder, wanted, numbers)
        return CacheSource(CacheOptions(path=folder))


def _check_space(source: Source, folder: Path, grey: bool, wanted: Sequence[int]) -> None:
    """Estimate from a few images whether there is room for all at the positions `wanted`.

    Raises:
        ResourceError: There is not.
    """
    sizes = []
    for position in wanted[:: -(-len(wanted) // SAMPLE) or 1]:
        try:
            image = stored(read_image(source, position), grey)
        except DataError:
            continue
        sizes.append(values(image.pixels.shape) * image.pixels.itemsize)
    need = sum(sizes) / max(1, len(sizes)) * len(wanted)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ResourceError(
            f"a cache of these images needs about {need / 2**30:.1f} GiB, {folder} has "
            f"{free / 2**30:.1f} GiB left: free space, or use another --out"
        )


def _complete(
    source: Source, folder: Path, wanted: Mapping[str, Any], numbers: Sequence[int]
) -> None:
    """Write the index and the header of a cache whose pieces are all there.

    Raises:
        DataError: No image could be read, or a piece has gone.
    """
    parts = [Index.from_bytes(part_of(folder, n).read_bytes()) for n in numbers]
    entries = np.concatenate([part.entries for part in parts])
    left_out = list(itertools.chain.from_iterable(part.left_out for part in parts))
    if not len(entries):
        _, name, reason = left_out[0]
        raise DataError(
            f"none of {len(source)} images can be read (first: {name}: {reason}): see "
            "`dira data inspect`"
        )
    columns, texts = _columns(source, entries["position"])
    names = list(itertools.chain.from_iterable(part.names for part in parts))
    sizes = [(folder / piece_name(number)).stat().st_size for number in numbers]
    cacheindex.write(folder, Index(entries, names, left_out, columns, texts), sizes, wanted)
    for path in (*(part_of(folder, number) for number in numbers), folder / PLAN):
        path.unlink(missing_ok=True)


def _columns(
    source: Source, positions: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Return what a source knows of the images at some positions besides their pixels."""
    columns = {"labels": source.labels, "words": source.words, "patients": source.patients}
    texts = {}
    if source.labels is not None and source.classes is not None:
        texts["labels"] = source.classes
    if isinstance(source, ManifestSource | CacheSource) and source.splits is not None:
        columns["splits"] = source.splits
        texts["splits"] = source.split_names
    found = {name: np.asarray(c)[positions] for name, c in columns.items() if c is not None}
    return found, texts
