"""The targets that any labelled set can be written as: a CSV file, or images and masks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from dira_core.data import Decoded, Window
from dira_core.data.folder import FileSource, FolderSource
from dira_core.data.manifest import column_of, find_column, line_number, read_csv
from dira_core.data.readers import decode_path
from dira_core.errors import DataError, RecipeError, did_you_mean
from dira_core.escaping import printable
from dira_core.source_options import FolderOptions, VolumeOptions
from dira_core.target_options import CsvOptions, MasksOptions
from dira_core.targets import Labels, Masks
from dira_core.types import Image

Array = np.ndarray[Any, Any]


class Table:
    """The lines of a CSV file of a target, by column.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, self.lines = read_csv(path)

    def column(self, name: str, key: str) -> list[str]:
        """Return the cells of a column; `key` of the target's options chose it."""
        place = column_of(self.header, name, f"target.{key}")
        return [line[place].strip() for line in self.lines]

    def keep(self, wanted: Iterable[bool]) -> None:
        """Leave out the other lines."""
        self.lines = [line for line, keep in zip(self.lines, wanted, strict=True) if keep]

    def files(self, name: str, window: Window) -> FileSource:
        """Return the images that a column names; paths below its folder are relative to it.

        Raises:
            DataError: A line names none.
        """
        paths = self.column(name, "image")
        if "" in paths:
            number = line_number(self.path, self.lines[paths.index("")])
            raise DataError(f"line {number} names no image: give it a path")
        above = os.path.join(self.path.parent.absolute(), "")
        paths = [path.removeprefix(above) for path in paths]
        return FileSource(self.path.parent, paths, VolumeOptions(window=window), Counter())

    def split(self, name: str | None) -> list[str] | None:
        """Return the split column, where the file has it."""
        if name is None or (name == "split" and find_column(self.header, name) is None):
            return None
        return self.column(name, "split")

    def patients(self, name: str | None) -> list[str]:
        """Return who each image shows; nothing where the line, or the file, does not say it."""
        if name is None or (name == "patient" and find_column(self.header, name) is None):
            return [""] * len(self.lines)
        return self.column(name, "patient")


def csv_labels(options: CsvOptions, window: Window) -> Labels:
    """Read labelled images from a CSV file.

    Raises:
        DataError: The file, or a label in it, cannot be read.
        RecipeError: A column or a class does not exist, or no label column is named.
    """
    table = Table(options.path)
    if (options.label is None) == (not options.labels):
        columns = ", ".join(map(printable, table.header))
        raise RecipeError(
            "name the column of the class (--set target.label=COLUMN), or columns of 0 and 1 "
            f'(--set target.labels=\'["A", "B"]\'); the file has: {columns}'
        )
    images = table.column(options.image, "image")
    if options.label is not None:
        cells = table.column(options.label, "label")
        classes = _classes(cells, options.classes)
        kept = np.array([cell in classes for cell in cells])
        labels = np.array([[cell == name for name in classes] for cell in cells])
    else:
        classes = list(options.labels)
        _each_once([name.casefold() for name in classes], "labels")
        columns_of = [table.column(name, "labels") for name in classes]
        labels = np.array(
            [[_binary(cell) for cell in row] for row in zip(*columns_of, strict=True)]
        )
        kept = ~np.isnan(labels).all(1)
    table.keep(kept)
    source = table.files(options.image, window)
    return Labels(
        source,
        tuple(classes),
        table.split(options.split),
        table.patients(options.patient),
        labels[kept].astype(np.float64),
        options.label is not None,
        notes=left_out("without one of the classes", compress(images, ~kept)),
    )


def _each_once(names: Sequence[str], key: str) -> None:
    """Refuse a class that an option names twice."""
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"target.{key} names {name!r:.60} twice: name each class once")


def left_out(why: str, names: Iterable[str]) -> list[str]:
    """Say which images a target leaves out, in one line; in none where there are none."""
    listed = [printable(name) for name in names]
    some = ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
    return [f"left out: {len(listed):,} images {why} ({some})"] if listed else []


def _classes(cells: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Return the classes of a column: those asked for, or all there are."""
    known = sorted(set(cells) - {""})
    _each_once(wanted or (), "classes")
    for name in wanted or ():
        if name not in known:
            raise RecipeError(
                f"target.classes: no line has the label {name!r:.60}{did_you_mean(name, known)}; "
                f"there are: {', '.join(map(printable, known[:10]))}"
            )
    chosen = list(wanted or known)
    if len(chosen) < 2:
        raise RecipeError(
            f"a label needs two classes and more, this one has {len(chosen)}: choose another "
            "column (target.label), or a column of 0 and 1 (target.labels)"
        )
    return chosen


def _binary(cell: str) -> float:
    try:
        value = float(cell) if cell else float("nan")
    except ValueError:
        value = 2.0
    if value not in (0.0, 1.0) and value == value:
        raise DataError(
            f"a column of target.labels holds {cell!r:.60}: it takes 0, 1 and nothing (not known); "
            "a column of names goes to target.label"
        )
    return value


@dataclass(frozen=True)
class FileMasks(Masks):
    """Masks in image files.

    Attributes:
        files: Of the masks, in the order of the images.
        values: Pixel values of each class; one class without a value takes all but 0 and `ignore`.
        ignore: Pixel value of what does not count, or None.
    """

    files: Sequence[Path]
    values: Mapping[str, int]
    ignore: int | None

    def there(self, index: int) -> bool:
        """Say whether the files of an image and of its mask exist."""
        return super().there(index) and os.path.exists(self.files[index])

    def mask(self, index: int) -> tuple[Array, Array]:
        """Read and tell classes apart; raises as the base class says."""
        return self._apart(mask_pixels(self.files[index]))

    def mask_of(self, index: int, image: Image) -> tuple[Array, Array]:
        """Read as `mask` does, and refuse a mask that does not lie as its image."""
        return self._apart(mask_pixels(self.files[index], image))

    def _apart(self, pixels: Array) -> tuple[Array, Array]:
        known = np.ones(pixels.shape, bool) if self.ignore is None else pixels != self.ignore
        if not self.values:
            return ((pixels != 0) & known)[None], known
        return np.stack([pixels == value for value in self.values.values()]), known


def mask_pixels(path: Path, image: Image | None = None) -> Array:
    """Read a mask as it is stored, (*S): no window, and empty ones are welcome.

    Axes of a volume are turned as its own header says; see `Image.affine`.

    Args:
        path: Of the mask.
        image: What it is a mask of.

    Raises:
        DataError: It cannot be read, is a colour picture, or does not lie as the image.
    """
    try:
        decoded = decode_path(path, "full", first_of_4d=False)
    except (OSError, DataError) as error:
        reason = str(error) if isinstance(error, DataError) else (error.strerror or "").lower()
        raise DataError(
            f"mask {printable(path.name)!r}: {reason}: mend it, or leave it out"
        ) from None
    if image is not None and _turned_otherwise(decoded, image):
        raise DataError(
            f"mask {printable(path.name)!r} would be mirrored or turned: its header says that its "
            f"axes point to {decoded.stored}, its image's to {image.stored}, and they are not at "
            "one place: save it with the header (affine) of its image"
        )
    pixels = decoded.pixels
    if len(pixels) > 1 and not (pixels == pixels[:1]).all():
        raise DataError(
            f"mask {printable(path.name)!r} is a colour picture: save it with one channel, whose "
            "values are the classes"
        )
    plane: Array = pixels[0]
    return plane


def _turned_otherwise(mask: Decoded, image: Image) -> bool:
    """Say whether two volumes were turned in different ways and still lie a voxel apart.

    Headers that turn both alike may differ in origin or spacing: voxels stay with their voxels.
    """
    if mask.affine is None or image.affine is None or mask.stored == image.stored:
        return False
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(mask.pixels.shape[:0:-1]) - 1)
    points = np.c_[corners, np.ones(len(corners))].T
    there = np.linalg.inv(image.affine) @ mask.affine @ points
    return bool(np.abs(there - points).max() >= 1)


def file_masks(options: MasksOptions, window: Window) -> FileMasks:
    """Read images with masks: two folders with the same names, or two columns of a CSV file.

    Raises:
        DataError: A file is missing, or no image has a mask.
        RecipeError: A column does not exist, or the folder of masks is not said.
    """
    classes = tuple(options.classes) or ("foreground",)
    split: list[str] | None = None
    if options.path.is_dir():
        source, files, without = _paired(options, window)
        patients = [""] * len(source)
    else:
        table = Table(options.path)
        masks = table.column(options.mask, "mask")
        images = zip(table.column(options.image, "image"), masks, strict=True)
        without = [image for image, mask in images if not mask]
        table.keep([bool(mask) for mask in masks])
        if not table.lines:
            raise DataError(f"no line has a mask in column {options.mask!r}: fill in some paths")
        source = table.files(options.image, window)
        files = [table.path.parent / mask for mask in masks if mask]
        split = table.split(options.split)
        patients = table.patients(options.patient)
    notes = left_out("without a mask", without)
    values, ignore = options.classes, options.ignore
    return FileMasks(source, classes, split, patients, files, values, ignore, notes=notes)


def _paired(options: MasksOptions, window: Window) -> tuple[FileSource, list[Path], list[str]]:
    """Pair the images of a folder with the masks of another by their paths without suffix.

    Returns:
        Images with a mask, their masks, and the paths of images without one.
    """
    if options.masks is None:
        raise RecipeError(
            "a folder of images needs the folder of their masks: --set target.masks=FOLDER"
        )
    images = FolderSource(FolderOptions(path=options.path))
    masks = FolderSource(FolderOptions(path=options.masks))
    image_of, mask_of = _by_stem(images), _by_stem(masks)
    paired = [path for stem, path in image_of.items() if stem in mask_of]
    if not paired:
        raise DataError(
            f"no image of {printable(str(options.path))!r} has a mask of its name in "
            f"{printable(str(options.masks))!r}: name them alike (a/1.png and a/1.png)"
        )
    source = FileSource(options.path, paired, VolumeOptions(window=window), Counter())
    files = [options.masks / mask_of[stem] for stem in image_of if stem in mask_of]
    return source, files, [path for stem, path in image_of.items() if stem not in mask_of]


def _by_stem(source: FileSource) -> dict[str, str]:
    """Return the paths of a folder by what they are without a suffix, which may be .nii.gz.

    Raises:
        DataError: Two are alike without it.
    """
    found: dict[str, str] = {}
    for path in source.paths:
        base = path.removesuffix(".gz")
        suffix = os.path.splitext(base)[1]
        stem = base if suffix[1:].isdigit() else base.removesuffix(suffix)  # digits: of a UID
        other = found.setdefault(stem, path)
        if other != path:
            raise DataError(
                f"{printable(other)!r} and {printable(path)!r} in {printable(str(source.root))!r} "
                "differ by their suffix alone, and masks are found by names without it: keep one"
            )
    return found
