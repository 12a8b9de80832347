"""Images in tar files, several files with one key a sample: the layout of WebDataset."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from dira_core import digests
from dira_core.data.building import refuse_unfinished
from dira_core.data.readers import read_bytes
from dira_core.data.shardfiles import Shard, ShardFiles, find, reaching
from dira_core.data.shardindex import HEADER, Sample, ShardIndex, crc_of, index_of, known_of
from dira_core.errors import DataError, DiraError, RecipeError, StorageError
from dira_core.files import write_atomic
from dira_core.roles import Blocks, Source
from dira_core.source_options import ShardsOptions
from dira_core.types import Image

logger = logging.getLogger("dira")

INDEX = "shards.index"
"""The file beside shards, or among the copies of remote ones, that says where samples are."""

LOOK = 2
"""Counts how shards are looked through: what another look found is not used."""


class ShardSource(Source):
    """The images of tar shards, in their order.

    Attributes:
        blocks: The shards; their images are mixed within a few of them at a time.

    Raises:
        DataError: There are none, they cannot be read, or some are still to be written.
        RecipeError: A label is asked for that no sample has, or a sample has several images.
    """

    def __init__(self, options: ShardsOptions) -> None:
        self._window = options.window
        refuse_unfinished(Path(options.path))
        shards = find(options.path)
        folder = options.cache or Path(
            os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dira", "shards"
        )
        self._files = ShardFiles(shards, folder, int(options.cache_gb * 2**30))
        self._index = indexed(shards, self._files, folder, options.image)
        if not len(self._index.samples):
            raise DataError(f"no image in {len(shards)} shards: see data.image for its ending")
        sizes = np.bincount(self._index.samples["shard"], minlength=len(shards))
        self.blocks = Blocks(sizes[sizes > 0], options.mixed)
        who = self._index.samples["patient"]
        self.patients = who.copy() if (who >= 0).any() else None
        if options.label is not None:
            self.labels, self.classes = self._labels(options.label)

    def __len__(self) -> int:
        return len(self._index.samples)

    def read(self, index: int) -> Image:
        """Read one image, by the window and spacing beside it where there are some.

        Raises:
            DataError: It cannot be read, or its shard was replaced.
        """
        sample, data = self._sample(index)
        if crc_of(data[sample.image - HEADER : sample.image]) != sample.crc:
            raise DataError(f"its shard is not the one that was indexed: remove {INDEX}")
        shown, spacing = own_of(_json(sample, data))
        content = data[sample.image : sample.image + sample.image_size]
        if shown is None or self._window != "auto":
            image = read_bytes(content, self._window)
        else:  # a window that was given, for pixels without the file's own look-up table
            image = replace(read_bytes(content, "full"), window=shown)
        return replace(image, spacing=spacing or image.spacing)

    def name(self, index: int) -> str:
        """Return the shard of an image, and its key there."""
        shard = self._index.shards[int(self._index.samples["shard"][index])][0]
        return f"{shard}/{self._index.keys[index]}"

    def digest(self, index: int) -> int | None:
        """Return the number of the bytes of the image's member: those of the file it was."""
        try:
            sample, data = self._sample(index)
        except DataError:
            return None
        return digests.of_bytes(data[sample.image : sample.image + sample.image_size])

    def fingerprint(self) -> str:
        """Return a digest of names and sizes of the shards, and of where images are in them."""
        digest = hashlib.blake2b(json.dumps(self._index.shards).encode(), digest_size=16)
        digest.update(self._index.samples.tobytes())
        return digest.hexdigest()

    def _sample(self, index: int) -> tuple[Sample, bytes]:
        sample = Sample(*self._index.samples[index].tolist())
        return sample, self._files.read(sample.shard, sample.start, sample.length)

    def _labels(self, label: str) -> tuple[np.ndarray, list[str]]:
        """Return the number of each image's label, -1 without one, and what the numbers mean."""
        texts = []
        for index in range(len(self)):
            sample, data = self._sample(index)
            if label == "cls":
                value = data[sample.cls : sample.cls + sample.cls_size].decode(errors="replace")
            else:
                found = _json(sample, data).get(label)
                value = "" if found is None else str(found)
            texts.append(value.strip())
        classes = sorted(set(texts) - {""}, key=_by_number)
        if not classes:
            raise RecipeError(
                f"no sample of the shards has a label {label!r}: set data.label to cls, or to a "
                "key of the json files"
            )
        position = {text: number for number, text in enumerate(classes)}
        return np.array([position.get(text, -1) for text in texts], np.int64), classes


def _by_number(text: str) -> tuple[float, str]:
    return (int(text) if text.isdecimal() else math.inf, text)


def _json(sample: Sample, data: bytes) -> dict[str, Any]:
    return known_of(data[sample.json : sample.json + sample.json_size])


def own_of(known: Mapping[str, Any]) -> tuple[tuple[float, float] | None, tuple[float, ...]]:
    """Return the window and the spacing that `dira data shard` wrote beside an image, if any."""
    own = known.get("dira")
    if not isinstance(own, dict):
        return None, ()
    window, spacing = (_numbers(own.get(key)) for key in ("window", "spacing"))
    return (window[0], window[1]) if len(window) == 2 else None, spacing


def _numbers(values: object) -> tuple[float, ...]:
    """Return finite numbers, or nothing if a value is something else."""
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        return ()
    return tuple(map(float, values)) if all(map(math.isfinite, values)) else ()


def indexed(
    shards: Sequence[Shard], files: ShardFiles, folder: Path, ending: str | None
) -> ShardIndex:
    """Return where the samples of shards are: as it is known beside them or here, or by a look.

    Args:
        shards: By number.
        files: Of the same.
        folder: Where what was found is kept, if it cannot be kept beside the shards.
        ending: Of the images; None is any.
    """
    home = shards[0].home
    names = json.dumps([LOOK, ending, *shards]).encode()
    own = f"shards-{hashlib.sha256(names).hexdigest()[:16]}.index"
    for place in (f"{home}/{INDEX}", f"{home}/{own}", str(folder / own)):
        found = _known(place)
        part = None if found is None else found.of(shards, ending)
        if part is not None and ("://" in home or _ends_there(part, files)):
            return part
    index = index_of(shards, files, ending)
    places = [folder] if "://" in home else [Path(home), folder]
    _keep(index, [place / own for place in places])
    return index


def _ends_there(index: ShardIndex, files: ShardFiles) -> bool:
    """Say whether shards end where they should; a tar file may grow within its size."""
    for number, (_, size, end) in enumerate(index.shards):
        if any(files.read(number, end, min(HEADER, max(0, size - end)))):
            return False
    return True


def _known(place: str) -> ShardIndex | None:
    """Read an index where it may be; None where there is none, or a damaged one."""
    try:
        with reaching(place), fsspec.open(place, "rb") as file:
            data = file.read()
        return ShardIndex.from_bytes(data)
    except (DataError, StorageError, ValueError):
        return None


def _keep(index: ShardIndex, places: Sequence[Path]) -> None:
    """Write an index to the first place that can be written to; without one, look again later."""
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            return write_atomic(place, index.to_bytes())
        except (OSError, DiraError):
            continue
    logger.warning("no place to keep where images are in the shards: set data.cache to a folder")
