"""What travels between the engine and the roles. No torch import: these are shapes, not work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LEVEL = 1 / 255
"""What one level of a byte is in [0, 1]."""


def in_unit(pixels: Tensor) -> Tensor:
    """Return pixels as float32 in [0, 1]; bytes are divided by 255."""
    return pixels if pixels.is_floating_point() else pixels.float().mul_(LEVEL)


@dataclass(frozen=True)
class Image:
    """One image as a source read it.

    Attributes:
        pixels: (C, *S), uint8, uint16 or float32, in the units of the file.
        window: The two pixel values that map to 0 and 1; values outside are clipped.
        spacing: Size of a pixel along each axis of S in mm, where the file says it.
        levels: The same image at 1/2, 1/4, ... of its size, (C, *ceil(S / 2**k)) each, if crops may
            come from there. With levels, `pixels` and they are memory-mapped: nothing is read
            before it is cropped, and nothing is kept.
        affine: Of a volume as its file holds it: from voxel (w, h, d) to mm towards right, front
            and head, (4, 4).
        stored: Where the axes of a volume point in its file, fastest first: "RAS", "LPI"; or None.
    """

    pixels: np.ndarray
    window: tuple[float, float]
    spacing: tuple[float, ...] | None = None
    levels: Sequence[np.ndarray] = ()
    affine: np.ndarray | None = None
    stored: str | None = None


@dataclass(frozen=True)
class View:
    """One view of every image of a batch.

    Attributes:
        pixels: (B, C, *S), geometry applied, intensities untouched: float32 in [0, 1], or bytes.
        image: (B, C, *S); T(crop), what the networks see.
        box: (B, len(S), 2), first and last edge of the crop along each axis, in pixels of the
            source image. A flipped axis has its edges swapped.
        label: (B,) made by the one label-producing distortion (rotation, jigsaw), or None.
        make_clean: Makes `clean`; None: it is the crop.
    """

    pixels: Tensor
    image: Tensor
    box: Tensor
    label: Tensor | None = None
    make_clean: Callable[[], Tensor] | None = None

    @cached_property
    def crop(self) -> Tensor:
        """The pixels in [0, 1], what must be restored: (B, C, *S) float32.

        Bytes become floats when they are first asked for: most Discriminators have one view
        restored.
        """
        return in_unit(self.pixels)

    @cached_property
    def clean(self) -> Tensor:
        """The crop after the appearance operations, before any distortion: (B, C, *S).

        Made when it is first asked for: few ask.
        """
        return self.crop if self.make_clean is None else self.make_clean()


@dataclass(frozen=True)
class Batch:
    """The views of B images.

    Attributes:
        views: One `View` per view the Discriminator asked for; at least one.
        index: (B,) int64, position of each image in its source.
        label: (B,) int64, pseudo-class given by the source (a visual word), or None.
    """

    views: tuple[View, ...]
    index: Tensor
    label: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """What one role wants minimised.

    Attributes:
        loss: Scalar in float32.
        metrics: Scalars worth a line in the log, by name.
        embedding: (B, D), the embedding z of the first view, watched for collapse; or None.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimizer steps done, of how many, in which epoch of how many."""

    step: int
    total_steps: int
    epoch: int
    epochs: int

    @property
    def fraction(self) -> float:
        """Part of the run that is done, in [0, 1]."""
        return self.step / max(1, self.total_steps)
