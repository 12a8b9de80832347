"""Write the images of a source into tar shards, in the layout of WebDataset."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Pillow

from dira_core.data.building import PLAN, Parts, appearing, begin, owned, write_parts
from dira_core.data.folder import FileSource
from dira_core.data.formats import HEAD, sniff
from dira_core.data.images import read_image
from dira_core.data.pieces import stored
from dira_core.data.shardfiles import ShardFiles, find
from dira_core.data.shardindex import index_of
from dira_core.data.shards import INDEX
from dira_core.errors import DataError
from dira_core.files import write_atomic
from dira_core.types import Image

if TYPE_CHECKING:
    from dira_core.roles import Source

LIST = "shards.json"
"""What says that a folder of shards is complete, and what it was made from."""

ENDINGS = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "DICOM": "dcm"}
"""What a file is called in a sample, by its format."""


@dataclass(frozen=True)
class Written:
    """What a folder of shards holds.

    Attributes:
        shards: Size in bytes of each.
        images: In all of them.
        left_out: Images that could not be read: name and reason.
    """

    shards: list[int]
    images: int
    left_out: list[tuple[str, str]]


def write_shards(
    source: Source,
    folder: Path,
    made_from: Mapping[str, Any],
    *,
    size: int,
    workers: int = 0,
    tick: Callable[[int], object] = lambda images: None,
) -> Written:
    """Write the shards of a source, or what is still missing of them.

    Args:
        source: Where images come from. Files are copied as they are; other images become PNG.
        folder: Of the shards; made when it is not there.
        made_from: What the shards depend on, as JSON: another one in the folder is refused.
        size: Images of a shard.
        workers: Processes that read; 0 reads here.
        tick: Called with a number of images that are done.

    Raises:
        RunFolderError: The folder is in use, or holds something else.
        DataError: No image can be read, or a worker died.
        ResourceError: There is not enough space, or a worker was killed, mostly for memory.
    """
    given = {"fingerprint": source.fingerprint(), "images": len(source), "size": size}
    wanted = json.loads(json.dumps({**made_from, **given}))
    with owned(folder):
        complete = _read(folder / LIST)
        begin(folder, wanted, None if complete is None else complete["made_from"])
        if complete is None:
            shards = Shards(source, folder, size)
            numbers = range(-(-len(source) // size))
            missing = [number for number in numbers if not shards.done(number)]
            tick(len(source) - sum(map(shards.images, missing)))
            write_parts(shards, missing, workers, tick)
            complete = _complete(source, shards, folder, wanted)
        found = complete["written"]
        left_out = [(name, reason) for name, reason in found["left_out"]]
        return Written(found["shards"], found["images"], left_out)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: write the shards into another folder") from error


class Shards(Parts):
    """Write shards, one request each.

    Args:
        source: Where images come from.
        folder: Of the shards.
        size: Images of a shard.
    """

    def __init__(self, source: Source, folder: Path, size: int) -> None:
        self._source = source
        self._folder = folder
        self._size = size

    def path(self, number: int) -> Path:
        """Return where a shard lies."""
        return self._folder / f"shard-{number:06d}.tar"

    def part(self, number: int) -> Path:
        """Return the small file that says a shard is whole, and what was left out."""
        return self._folder / f"shard-{number:06d}.part"

    def positions(self, number: int) -> range:
        """Return which images make up a shard."""
        return range(number * self._size, min((number + 1) * self._size, len(self._source)))

    def images(self, number: int) -> int:
        """Return how many images of the source make up a shard."""
        return len(self.positions(number))

    def done(self, number: int) -> bool:
        """Say whether a shard is there."""
        return self.path(number).is_file() and self.part(number).is_file()

    def write(self, number: int) -> None:
        """Write a shard, then what was left out of it; one image is in memory."""
        left_out: list[tuple[str, str]] = []
        with appearing(self.path(number)) as file, tarfile.open(fileobj=file, mode="w|") as tar:
            for position in self.positions(number):
                try:
                    members = sample(self._source, position)
                except DataError as error:
                    left_out.append((self._source.name(position), str(error)))
                    continue
                for ending, data in members.items():
                    member = tarfile.TarInfo(f"{position:09d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        write_atomic(self.part(number), json.dumps(left_out).encode())


def sample(source: Source, position: int) -> dict[str, bytes]:
    """Return the members of a sample by their ending: the image, and a JSON of what is known of it.

    Raises:
        DataError: The image cannot be read, or has no PNG.
    """
    image = read_image(source, position)
    if image.pixels.ndim != 3:
        raise DataError("a volume, where shards hold images: use `dira data cache`")
    known: dict[str, Any] = {"name": source.name(position)}
    if source.labels is not None and source.labels[position] >= 0:
        label = int(source.labels[position])
        known["label"] = label if source.classes is None else source.classes[label]
    own: dict[str, Any] = {}
    if source.patients is not None:
        own["patient"] = int(source.patients[position])
    if isinstance(source, FileSource):
        ending, data = _file(source.path(position))
        own |= {"window": list(image.window)} if source.options.window != "auto" else {}
    else:
        ending, data = "png", png(image)
        own["window"] = list(stored(image, grey=False).window)
        own |= {"spacing": list(image.spacing)} if image.spacing else {}
    if own:
        known["dira"] = own
    return {ending: data, "json": json.dumps(known, sort_keys=True).encode()}


def _file(path: Path) -> tuple[str, bytes]:
    """Return the content of an image file, and how it is called by its format."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError((error.strerror or "unreadable").lower()) from error
    return ENDINGS[sniff(data[:HEAD]) or "PNG"], data


def png(image: Image) -> bytes:
    """Encode an image without loss; numbers that are no bytes or 16 bits as a cache would.

    Raises:
        DataError: PNG has no place for it.
    """
    pixels = stored(image, grey=False).pixels
    if pixels.ndim != 3 or len(pixels) not in (1, 3) or (len(pixels), pixels.itemsize) == (3, 2):
        raise DataError(f"shape {pixels.shape} of {8 * pixels.itemsize} bits: shards hold PNG")
    picture = Pillow.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1).copy())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _complete(
    source: Source, shards: Shards, folder: Path, wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the index of the shards, and what says that they are complete.

    Raises:
        DataError: No image could be read.
    """
    found = find(str(folder))
    parts = [shards.part(number) for number in range(len(found))]
    left_out = [entry for part in parts for entry in json.loads(part.read_bytes())]
    index = index_of(found, ShardFiles(found, folder, 0), None)
    if not index.keys:
        raise DataError(
            f"none of {len(source)} images can be read (first: {left_out[0][0]}: {left_out[0][1]}):"
            " see `dira data inspect`"
        )
    write_atomic(folder / INDEX, index.to_bytes())
    sizes = [shard.size for shard in found]
    written = {"shards": sizes, "images": len(index.keys), "left_out": left_out}
    complete = {"made_from": dict(wanted), "written": written}
    write_atomic(folder / LIST, json.dumps(complete, indent=1).encode())
    for path in (*parts, folder / PLAN):
        path.unlink(missing_ok=True)
    return complete
