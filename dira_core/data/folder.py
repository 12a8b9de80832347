"""Files as a source, and the images of a folder."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from abc import ABC
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dira_core import digests
from dira_core.data.building import refuse_unfinished
from dira_core.data.formats import HEAD, slices_of, sniff
from dira_core.data.readers import pixels_of, read, series_of
from dira_core.errors import DataError
from dira_core.escaping import printable
from dira_core.roles import Source
from dira_core.source_options import IMAGE_SUFFIXES, VOLUME_SUFFIXES, FolderOptions, VolumeOptions
from dira_core.types import Image

SUFFIXES = (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)

SKIPPED_NAMES = ("__MACOSX", "DICOMDIR")
"""What archives and CD exports add: shadows of files, and an index without pixels."""


class FileSource(Source, ABC):
    """Image files by position.

    Args:
        root: Folder that the paths start from.
        paths: Of the images, relative to `root` or absolute.
        options: How files are read.
        ignored: What else was there and why it is left out, counted.
    """

    def __init__(
        self, root: Path, paths: Sequence[str], options: VolumeOptions, ignored: Counter[str]
    ) -> None:
        self.root = root
        self.paths = paths
        self.options = options
        self.ignored = ignored

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """Return where an image lies."""
        return self.root / self.paths[index]

    def read(self, index: int) -> Image:
        """Read one image; raises as `dira_core.data.readers.read` does."""
        how, slices = self.options, self.slices(index)
        return read(
            self.path(index), how.window, how.spacing, first_of_4d=how.first_of_4d, slices=slices
        )

    def slices(self, index: int) -> list[Path]:
        """Return the files of a volume that is one series of several in its folder; else none."""
        return []

    def name(self, index: int) -> str:
        """Return the path from the root; characters that a terminal would obey are escaped."""
        return printable(self.paths[index])

    def digest(self, index: int) -> int | None:
        """Return the number of the bytes of a file, or of the slices of a series.

        Of a MetaImage header they are those of the file it names.
        """
        path = self.path(index)
        try:
            slices = self.slices(index) or (slices_of(path) if path.is_dir() else [])
            return digests.of_files(slices or [pixels_of(path)])
        except (OSError, DataError):
            return None

    def there(self, index: int) -> bool:
        """Say whether the file, or the folder of a series, exists."""
        return os.path.exists(self.path(index))

    def fingerprint(self) -> str:
        """Return a digest of the paths and sizes of the files, in order.

        Nothing is opened but headers of MetaImage: the file they name counts.

        They are looked at once: a run asks at every checkpoint.
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for index, path in enumerate(self.paths):
            size = sum(map(_size, self.slices(index) or [self.root / path]))
            digest.update(os.fsencode(path) + b"\0%d\0" % size)
        return digest.hexdigest()


class FolderSource(FileSource):
    """Every image file of a folder and its sub-folders, sorted by path.

    Linked files and folders are followed, each folder once. A file without a suffix (or with
    digits for one, as in UIDs) is an image if its first bytes say so. With `series`, a folder of
    DICOM files counts as one volume, or if split, as one for each series, named by its first file.

    Raises:
        DataError: The folder is missing, holds no image, or a part of a cache.
    """

    def __init__(self, options: FolderOptions) -> None:
        root, ignored = options.path, Counter[str]()
        if not root.is_dir():
            raise DataError(f"no folder {printable(str(root))!r}: give an existing one")
        refuse_unfinished(root)
        above = len(os.path.join(root, ""))
        found: Iterable[str] = _walk(root, ignored, set())
        self._slices: dict[str, list[str]] = {}
        if options.series == "split":
            self._slices = {path[above:]: files for path, files in _split(found, ignored).items()}
            found = [os.path.join(root, path) for path in self._slices]
        elif options.series:
            found = map(_series_of, found)
        paths = sorted({path[above:] or "." for path in found})
        if not paths:
            known = " ".join(suffix for suffix in SUFFIXES if suffix)
            seen = ", ".join(f"{n} {why}" for why, n in ignored.most_common(5)) or "nothing at all"
            raise DataError(
                f"no image in {printable(str(root))!r}: looked for {known} and DICOM without a "
                f"suffix, found {seen}"
            )
        super().__init__(root, paths, options, ignored)

    def slices(self, index: int) -> list[Path]:
        """Return the files of a volume that is one series of several in its folder; else none."""
        return [Path(path) for path in self._slices.get(self.paths[index], [])]


def _walk(
    folder: str | Path, ignored: Counter[str], visited: set[tuple[int, int]]
) -> Iterator[str]:
    """Yield image files below a folder, counting the rest; a folder met before is passed over."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in visited:
        ignored["folder linked twice"] += 1
        return
    visited.add((status.st_dev, status.st_ino))
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
        ignored["folder without permission"] += 1
        return
    for entry in entries:
        try:
            reason = _reason_to_skip(entry)
        except OSError:  # a link to itself
            reason = "broken link"
        if reason:
            ignored[reason] += 1
        elif entry.is_dir():
            yield from _walk(entry.path, ignored, visited)
        else:
            yield entry.path


def _reason_to_skip(entry: os.DirEntry[str]) -> str | None:
    if entry.name.startswith("."):
        return "hidden"
    if entry.name in SKIPPED_NAMES:
        return entry.name
    if entry.is_dir():
        return None
    if not entry.is_file():
        return "broken link" if entry.is_symlink() else "not a regular file"
    suffix = _suffix(entry.name)
    if suffix and not suffix[1:].isdigit():
        return None if suffix in SUFFIXES else printable(suffix)
    return None if _looks_like_image(entry.path) else "no suffix, no image"


def _looks_like_image(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return sniff(file.read(HEAD)) is not None
    except OSError:
        return True  # reading it will say what is wrong


def _suffix(name: str) -> str:
    lower = name.lower()
    return ".nii.gz" if lower.endswith(".nii.gz") else os.path.splitext(lower)[1]


def _series_of(path: str) -> str:
    """Return the folder of a DICOM file, and other files themselves."""
    suffix = _suffix(path)
    dicom = suffix in (".dcm", ".dicom", "") or suffix[1:].isdigit()
    return os.path.join(os.path.dirname(path), "") if dicom else path


def _split(found: Iterable[str], ignored: Counter[str]) -> dict[str, list[str]]:
    """Return the files of each series by the first of them; other files have none.

    A series of one slice, such as a localizer, is counted and left out.
    """
    series: dict[tuple[str, str], list[str]] = {}
    frames: Counter[tuple[str, str]] = Counter()
    volumes: dict[str, list[str]] = {}
    for path in found:
        known = series_of(path) if _series_of(path) != path else None
        if known is None:
            volumes[path] = []
            continue
        key = (os.path.dirname(path), known[0])
        series.setdefault(key, []).append(path)
        frames[key] += known[1]
    for key, files in series.items():
        if frames[key] > 1:
            volumes[files[0]] = files
        else:
            ignored["series of one slice"] += 1
    return volumes


def _size(path: Path) -> int:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
        pixels = pixels_of(path)
        return status.st_size + (0 if pixels == path else pixels.stat().st_size)
    except (OSError, ValueError, DataError):
        return -1
