"""How crops become views, as a part of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dira_core.choices import DistortionChoice
from dira_core.components import Options
from dira_core.errors import RecipeError

SERIES = "are they slices of volumes? --set data.series=true"

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


Side = Annotated[int, Field(ge=SMALLEST_SIDE)]
Size = Side | Annotated[tuple[Side, ...], Field(min_length=2, max_length=3)]
"""One side for all axes, or one for each: (H, W) or (D, H, W)."""


def sides_of(size: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """Return the sides of a crop along its `dims` axes.

    Raises:
        RecipeError: It has sides for another number of axes.
    """
    sides = (size,) * dims if isinstance(size, int) else tuple(size)
    if len(sides) != dims:
        stack = f" ({SERIES})" if len(sides) == 3 else ""
        raise RecipeError(
            f"views.size has {len(sides)} sides, the images have {dims} axes: give {dims}, or one "
            f"number for all{stack}"
        )
    return sides


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


class Lungs(Options):
    """Keep crops that are mostly air, as those of lungs (TransVW, Models Genesis)."""

    above: float = Field(
        0.425, description="soft tissue starts here: 0.425 is -150 HU in the window [-1000, 1000]"
    )
    most: float = Field(0.15, ge=0, le=1, description="part of a crop that may be soft tissue")
    tries: int = Field(
        8, ge=1, description="places tried for a crop; if none will do, that with most air is taken"
    )


class Views(Options):
    """Crop -> view: what the networks see, and what must be restored."""

    size: Size = Field(
        224,
        description="side of a crop in px (each axis), at least 8; or one for each: [depth, "
        "height, width]",
    )
    channels: int = Field(1, ge=1, description="channels of an image; grey images are 1")
    scale: Part = Field((0.2, 1.0), description="part of the image's area a crop covers")
    ratio: Bounds = Field((0.75, 4 / 3), description="width over height of a crop")
    lungs: Lungs | None = Field(
        None, description="keep crops that are mostly air, as those of lungs; none keeps all"
    )
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
                return self.model_copy(update={**changes, "size": self._scaled(override.side)})
            view -= override.repeat
        return self

    def kinds(self, n_views: int) -> list[tuple[Views, list[int]]]:
        """Return the ways in which views are made, and the numbers of those made in each."""
        ways = [self.of(number) for number in range(n_views)]
        kinds = [way for number, way in enumerate(ways) if way not in ways[:number]]
        return [(kind, [n for n, way in enumerate(ways) if way == kind]) for kind in kinds]

    def _scaled(self, part: float) -> Size:
        if isinstance(self.size, int):
            return max(SMALLEST_SIDE, round(self.size * part))
        return tuple(max(SMALLEST_SIDE, round(side * part)) for side in self.size)
