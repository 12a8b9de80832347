"""Labelled tasks to transfer to: what a target hands over, whatever layout it was read from."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dira_core.roles import Source


@dataclass(frozen=True)
class Labelled(ABC):
    """Labelled images of either kind.

    Attributes:
        source: The images.
        classes: What is told apart, K names.
        split: "train", "validation", "test" or nothing for each image; None where the set has no
            split of its own.
        patients: Id of who each image shows; empty where nobody knows.
        notes: What was found, and what was left out and why; a line each.
    """

    source: Source
    classes: Sequence[str]
    split: Sequence[str] | None
    patients: Sequence[str]
    notes: Sequence[str] = field(default=(), kw_only=True)

    @cached_property
    def groups(self) -> list[str]:
        """What each image stays together with when images are parted: its patient's, or itself."""
        return [
            f"patient {who}" if who else f"image {os.path.normpath(self.source.name(index))}"
            for index, who in enumerate(self.patients)
        ]

    def there(self, index: int) -> bool:
        """Say whether the files of an image, and of what is known of it, exist; none is opened."""
        return self.source.there(index)

    def digests(self) -> dict[str, str]:
        """Return digests of the images, and of all that is known of them, as results keep them."""
        return {"images": self.source.fingerprint(), "labels": self.fingerprint()}

    def fingerprint(self) -> str:
        """Return a digest of all that is known of the images: labels or masks, split, patients.

        Of files the names and sizes count; nothing is opened.
        """
        digest = hashlib.blake2b(digest_size=16)
        for each in fields(self):
            if each.name not in ("source", "notes"):
                for piece in _pieces(getattr(self, each.name)):
                    digest.update(piece)
        return digest.hexdigest()


def _pieces(known: Any) -> Iterator[bytes]:
    if isinstance(known, np.ndarray):
        yield known.tobytes()
    elif isinstance(known, Path):
        size = known.stat().st_size if known.is_file() else None
        yield repr((known.name, size)).encode()
    elif isinstance(known, list | tuple):
        for each in known:
            yield from _pieces(each)
    else:
        yield repr(known).encode() + b"\0"


@dataclass(frozen=True)
class Labels(Labelled):
    """Images with labels: classification.

    Attributes:
        labels: (N, K) float of 0 and 1, NaN where not known; between them only in training images.
        exclusive: Whether an image has exactly one of the classes.
        scored: The classes whose mean is the task's score; all of them where it is None.
    """

    labels: np.ndarray[Any, Any]
    exclusive: bool
    scored: Sequence[str] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Masks(Labelled, ABC):
    """Images with masks: segmentation."""

    @abstractmethod
    def mask(self, index: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the masks of image `index`, (K, *S) bool, and which pixels count, (*S) bool.

        Raises:
            DataError: They cannot be read.
        """
