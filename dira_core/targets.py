"""Labelled tasks to transfer to: what a target hands over, whatever layout it was read from."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dira_core.components import Choice
from dira_core.contracts import source_flaw
from dira_core.errors import PluginError
from dira_core.plugins import make
from dira_core.roles import Source

if TYPE_CHECKING:
    from dira_core.data import Window
    from dira_core.types import Image


@dataclass(frozen=True)
class Labelled(ABC):
    """Labelled images of either kind: what `Labels` and `Masks` have in common.

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

    def mask_of(
        self, index: int, image: Image
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return what `mask` does, for an image that was read: where files say how both lie.

        Raises:
            DataError: They cannot be read, or do not lie as the image does.
        """
        return self.mask(index)


def build_target(choice: Choice, window: Window) -> Labels | Masks:
    """Build a target that a plan chose.

    Args:
        choice: Its name and options.
        window: How the weights' images became numbers in [0, 1].

    Raises:
        DataError: What it reads is missing or damaged.
        PluginError: It handed over something that is no labelled task.
    """
    target: Labels | Masks = make("target", choice, window)
    if flaw := target_flaw(target):
        raise PluginError(f"target {choice.name!r}: {flaw}; report it to its plugin's authors")
    return target


def target_flaw(target: object) -> str | None:
    """Say what is wrong with a labelled task, or None."""
    if not isinstance(target, Labels | Masks):
        return f"it made a {type(target).__name__}, not Labels or Masks"
    n, k = len(target.source), len(target.classes)
    for name in ("split", "patients"):
        column: Sequence[str] | None = getattr(target, name)
        if column is not None and len(column) != n:
            return f"`{name}` has {len(column)} entries, its source {n} images"
    if isinstance(target, Labels):
        labels = target.labels
        if labels.shape != (n, k) or labels.dtype.kind != "f":
            return f"`labels` are {labels.dtype} {labels.shape}, not floats {(n, k)}"
        if ((labels < 0) | (labels > 1)).any():
            return "`labels` are not all in [0, 1]"
        if not set(target.scored or ()) <= set(target.classes):
            return "`scored` names something that is no class"
    return source_flaw(target.source)
