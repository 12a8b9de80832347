"""How crops become views, as a part of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dira_core.choices import DistortionChoice
from dira_core.components import Options

SMALLEST_SIDE = 8
"""Of a crop, in px."""


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError("bounds must be above 0, the lower one first")
    return bounds


def _part_of_the_image(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[1] > 1:
        raise ValueError("a crop cannot cover more than 1 of the image")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_ordered)]
Part = Annotated[Bounds, AfterValidator(_part_of_the_image)]


class Override(Options):
    """What is different in some views; none leaves a key as it is in `views`."""

    repeat: int = Field(1, ge=1, description="how many consecutive views this is about")
    side: float = Field(1.0, gt=0, le=1, description="side of a crop, as a part of views.size")
    scale: Part | None = Field(None, description="part of the image's area a crop covers")
    ratio: Bounds | None = Field(None, description="width over height of a crop")
    geometry: list[DistortionChoice] | None = Field(None, description="instead of views.geometry")
    appearance: list[DistortionChoice] | None = Field(
        None, description="instead of views.appearance"
    )
    distort: list[DistortionChoice] | None = Field(None, description="instead of views.distort")


class Views(Options):
    """Crop -> view: what the networks see, and what must be restored."""

    size: int = Field(224, ge=SMALLEST_SIDE, description="side of a crop in px (each axis)")
    channels: int = Field(1, ge=1, description="channels of an image; grey images are 1")
    scale: Part = Field((0.2, 1.0), description="part of the image's area a crop covers")
    ratio: Bounds = Field((0.75, 4 / 3), description="width over height of a crop")
    geometry: list[DistortionChoice] = Field(
        default=[], description="applied to input and target alike (flip)"
    )
    appearance: list[DistortionChoice] = Field(
        default=[], description="applied to the input; undone by the Restorer (brightness, blur)"
    )
    distort: list[DistortionChoice] = Field(
        default=[], description="applied after appearance; undone by the Restorer (cut-out, swap)"
    )
    discriminator_sees: Literal["image", "clean"] = Field(
        "image", description="the distorted view, or the view before `distort` (one more forward)"
    )

    each: list[Override] = Field(
        default=[], description="what differs from view to view, the first view first"
    )

    def of(self, view: int) -> Views:
        """Return how view number `view` is made: these values under its overrides."""
        for override in self.each:
            if view < override.repeat:
                chosen = override.model_dump(exclude={"repeat", "side"}, exclude_none=True)
                changes = {key: getattr(override, key) for key in chosen}
                side = max(SMALLEST_SIDE, round(self.size * override.side))
                return self.model_copy(update={**changes, "size": side})
            view -= override.repeat
        return self
