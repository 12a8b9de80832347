"""Decoded images of a source: kept where there is room, stepped over where they are unreadable."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dira_core.contracts import demand, image_flaw
from dira_core.data.crops import reduce_channels
from dira_core.errors import DataError, DiraError, PluginError
from dira_core.loading import said
from dira_core.types import Image

if TYPE_CHECKING:
    from dira_core.roles import Source


class Images:
    """Decoded images of a source, some of them kept; unreadable ones are stepped over.

    Args:
        source: Reads one image.
        channels: Channels wanted: 1 makes grey of colour, more repeat a single channel.
        cache_bytes: Memory for decoded images. Epochs visit images in random order, so the first
            ones are kept for good: throwing out others for them would gain nothing.
        max_unreadable: Part of the source that may be unreadable.
    """

    def __init__(
        self, source: Source, channels: int, cache_bytes: int = 0, max_unreadable: float = 1.0
    ) -> None:
        self._source = source
        self._channels = channels
        self._free = cache_bytes
        self._allowed = max_unreadable
        self._kept: dict[int, Image] = {}
        self._bad: dict[int, str] = {}

    def why_not(self, index: int) -> str | None:
        """Return why an image that was asked for cannot be read, or None."""
        return self._bad.get(index)

    def readable(self, index: int) -> tuple[int, Image]:
        """Return the first readable image from `index` on, after the last the first, and its index.

        Raises:
            DataError: More images in a row are unreadable than may be in the whole source.
            StorageError: The storage does not answer, which is no fault of an image.
            PluginError: The source raised something else, or returned no image.
        """
        n = len(self._source)
        for tried in range(n):
            at = (index + tried) % n
            try:
                return at, self._image(at)
            except DataError as error:
                self._bad[at] = str(error)
                if tried + 1 > self._allowed * n:
                    raise DataError(
                        f"at least {tried + 1} of {n} images are unreadable, more than "
                        f"loader.max_unreadable = {self._allowed:g} (last: "
                        f"{self._source.name(at)}: {error}): repair or remove them, or allow more "
                        "with --set loader.max_unreadable"
                    ) from error
        raise DataError(
            f"none of {n} images can be read (first: {self._source.name(0)}: {self._bad[0]}): "
            "see `dira data inspect`"
        )

    def _image(self, index: int) -> Image:
        if index in self._bad:
            raise DataError(self._bad[index])
        if index in self._kept:
            return self._kept[index]
        image = read_image(self._source, index)
        colour = len(image.pixels) == 3 and self._channels == 1
        if len(image.pixels) not in (1, self._channels) and not colour:
            raise DataError(
                f"it has {len(image.pixels)} channels, the recipe asks for {self._channels}: "
                "choose others with --set views.channels, or in a transfer with --set channels"
            )
        if image.levels:  # mapped files: nothing is read yet, and there is nothing to keep
            return image
        image = replace(image, pixels=reduce_channels(image.pixels, self._channels))
        if image.pixels.nbytes <= self._free:
            self._free -= image.pixels.nbytes
            self._kept[index] = image
        return image


def read_image(source: Source, index: int) -> Image:
    """Read an image of a source.

    Raises:
        DataError: It cannot be read.
        PluginError: The source raised something else, or returned no image.
    """
    try:
        image = source.read(index)
    except DiraError:
        raise
    except Exception as error:
        raise PluginError(
            f"the source {type(source).__name__} raised {said(error)} "
            f"on image {index}, where only DataError is expected: report it to its authors"
        ) from error
    demand(source, image_flaw(image))
    return image
