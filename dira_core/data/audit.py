"""Read every image of a source once and say what is there, what is wrong, and what to do."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from torch.utils.data import Dataset

from dira_core.data import Decoded
from dira_core.data.readers import inspect
from dira_core.data.workers import Workers
from dira_core.errors import DataError
from dira_core.types import Image

if TYPE_CHECKING:
    from dira_core.data.folder import FileSource
    from dira_core.roles import Source

AT_ONCE = 16
"""Files that a process reads in one go."""

HANGS = 3600.0
"""Seconds after which they are said to hang."""

SIDE = 224
"""The default of `views.size`: smaller images call for a smaller one."""


class Spread(NamedTuple):
    """Smallest, median and largest of some numbers."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What reading one image showed."""

    format: str
    bits: int
    shape: tuple[int, ...]
    low: float
    high: float
    window: tuple[float, float]
    spacing: tuple[float, ...] | None
    digest: bytes
    notes: tuple[str, ...]
    stored: str | None


@dataclass(frozen=True)
class Audit:
    """What a source holds. Counts are by name; names are paths from the source's root.

    Attributes:
        images: Images the source offers.
        examined: Images that were read; fewer than `images` under a limit.
        formats: Images by file format.
        bits: Images by bits a value.
        channels: Images by number of channels.
        sizes: Pixels along each axis of the images, the last one first (width, height).
        intensity: Smallest and largest pixel value of all images.
        window_low, window_high: The values that map to 0 and 1.
        spacing: Size of a pixel along each axis in mm, the last axis first, over the `spaced`
            images that say it.
        stored: Volumes by where their axes point in the file, fastest first.
        duplicates: Groups of images with exactly the same pixels.
        unreadable: Names and why.
        ignored: Files left out, by reason.
        notes: How images were read, where that is not obvious.
        labels: Images by label.
        advice: What to do about it.
    """

    images: int
    examined: int
    formats: dict[str, int]
    bits: dict[str, int]
    channels: dict[str, int]
    sizes: list[Spread]
    intensity: tuple[float, float] | None
    window_low: Spread | None
    window_high: Spread | None
    spacing: list[Spread]
    spaced: int
    stored: dict[str, int]
    duplicates: list[list[str]]
    unreadable: list[tuple[str, str]]
    ignored: dict[str, int]
    notes: dict[str, int]
    labels: dict[str, int]
    advice: list[str]

    @property
    def readable(self) -> int:
        """Number of images that could be read."""
        return self.examined - len(self.unreadable)

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)


def audit(
    source: Source,
    *,
    limit: int | None = None,
    workers: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Audit:
    """Read the images of a source and sum up what was found.

    Args:
        source: Any source; of files, the format and depth are told too.
        limit: Read this many images, evenly spaced, instead of all.
        workers: Processes that read files; 0 reads here.
        tick: Called after every image.

    Raises:
        DataError: A worker process died.
    """
    count = len(source) if limit is None else min(limit, len(source))
    indices = [position * len(source) // count for position in range(count)]
    results = []
    for result in _results(source, indices, workers):
        results.append(result)
        tick()
    return summarise(source, indices, results)


class Files(Dataset[None]):
    """The files of a source, some of them at once."""

    def __init__(self, source: FileSource) -> None:
        self._source = source

    def __getitems__(self, indices: list[int]) -> list[Finding | str]:
        return [*map(self.examine, indices)]

    def examine(self, index: int) -> Finding | str:
        """Read a file, or its slices; return what it is, or why it cannot be read."""
        path, slices = self._source.path(index), self._source.slices(index)
        how = self._source.options
        try:
            return _finding(
                *inspect(path, how.window, how.spacing, first_of_4d=how.first_of_4d, slices=slices)
            )
        except DataError as error:
            return str(error)


def summarise(source: Source, indices: Sequence[int], results: list[Finding | str]) -> Audit:
    """Sum up the findings about images `indices` of a source."""
    from dira_core.data.folder import FileSource

    read = [(i, r) for i, r in zip(indices, results, strict=True) if isinstance(r, Finding)]
    found = [finding for _, finding in read]
    unreadable = [
        (source.name(i), r) for i, r in zip(indices, results, strict=True) if isinstance(r, str)
    ]
    copies: dict[bytes, list[str]] = {}
    for index, finding in read:
        copies.setdefault(finding.digest, []).append(source.name(index))
    duplicates = [names for names in copies.values() if len(names) > 1]
    axes = min((len(f.shape) - 1 for f in found), default=0)  # of a mixture, those all have
    spacing = [f.spacing for f in found if f.spacing]
    return Audit(
        images=len(source),
        examined=len(indices),
        formats=_counts(f.format for f in found if f.format),
        bits=_counts(str(f.bits) for f in found),
        channels=_counts(str(f.shape[0]) for f in found),
        sizes=[Spread(*_spread(f.shape[-1 - axis] for f in found)) for axis in range(axes)],
        intensity=(min(f.low for f in found), max(f.high for f in found)) if found else None,
        window_low=_spread(f.window[0] for f in found) if found else None,
        window_high=_spread(f.window[1] for f in found) if found else None,
        spacing=[_spread(s[-1 - axis] for s in spacing) for axis in range(axes) if spacing],
        spaced=len(spacing),
        stored=_counts(f.stored for f in found if f.stored),
        duplicates=duplicates,
        unreadable=unreadable,
        ignored=dict(source.ignored) if isinstance(source, FileSource) else {},
        notes=_counts(note for f in found for note in f.notes),
        labels=_labels(source),
        advice=list(_advice(found, len(unreadable), duplicates)),
    )


def _results(source: Source, indices: list[int], workers: int) -> Iterator[Finding | str]:
    from dira_core.data.folder import FileSource

    if not isinstance(source, FileSource):
        yield from map(partial(_examine_any, source), indices)
        return
    files = Files(source)
    if workers == 0:
        yield from map(files.examine, indices)
        return
    requests = [indices[start : start + AT_ONCE] for start in range(0, len(indices), AT_ONCE)]
    number = min(workers, len(requests))
    with closing(Workers(files, number, timeout=HANGS, pinned=False)) as processes:
        try:
            for findings in processes.answers(requests):
                yield from findings
        except DataError as error:
            raise DataError(
                "a reading process died or hangs: use --workers 0 to see at which file"
            ) from error


def _examine_any(source: Source, index: int) -> Finding | str:
    try:
        image = source.read(index)
    except DataError as error:
        return str(error)
    bits = 8 * image.pixels.itemsize
    return _finding(image, Decoded(image.pixels, "", bits, image.window))


def _finding(image: Image, decoded: Decoded) -> Finding:
    pixels = image.pixels
    digest = hashlib.blake2b(f"{pixels.dtype} {pixels.shape}".encode(), digest_size=16)
    digest.update(pixels.tobytes())
    return Finding(
        decoded.format,
        decoded.bits,
        pixels.shape,
        float(pixels.min()),
        float(pixels.max()),
        image.window,
        image.spacing,
        digest.digest(),
        decoded.notes,
        decoded.stored,
    )


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _spread(numbers: Iterable[float]) -> Spread:
    values = list(numbers)
    return Spread(min(values), statistics.median(values), max(values))


def _labels(source: Source) -> dict[str, int]:
    """Return images by label: by the text of the manifest where there is one."""
    from dira_core.data.manifest import ManifestSource

    if source.labels is None:
        return {}
    classes = source.classes if isinstance(source, ManifestSource) else None
    names = {-1: "none"} | dict(enumerate(classes or []))
    return _counts(names.get(label, str(label)) for label in source.labels.tolist())


def _advice(found: list[Finding], unreadable: int, duplicates: list[list[str]]) -> Iterator[str]:
    if unreadable:
        yield (
            f"{unreadable} of {unreadable + len(found)} images cannot be read: mend or remove "
            "them; a run skips them and stops above loader.max_unreadable"
        )
    if duplicates:
        spare = sum(len(names) - 1 for names in duplicates)
        yield f"{spare} images repeat another pixel by pixel: keep one, copies leak between splits"
    if len({f.shape[0] for f in found}) > 1:
        yield "some images are grey, others in colour: views.channels says what the networks see"
    if len({f.bits for f in found}) > 1:
        yield "bit depths differ: look at a few images, or set data.window"
    if len({len(f.shape) for f in found}) > 1:
        yield "some are images, others volumes: a run takes one kind, give each a folder of its own"
    if any(f.format and f.low < -500 for f in found):
        yield "some values look like HU: set data.window, for example [-1000, 400] for lungs"
    side = int(statistics.median_low(min(f.shape[-2:]) for f in found)) if found else SIDE
    if side < SIDE:
        yield f"half of the images are at most {side} px a side: choose a smaller views.size"
