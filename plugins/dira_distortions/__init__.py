"""Distortions of DiRA (arXiv:2204.10437) and of Models Genesis (arXiv:1908.06912), batched, N-D.

Every length is a part of the crop's side along the same axis, so a recipe means the same at 64 and
at 224 px. No torch here: the tables and `--help` stay instant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dira_core import Component, DistortionChoice, DistortionOptions, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Distortion

DIRA_API = 1

# Noise of U(-1, 1), smoothed by a Gaussian of 8 voxels along three axes, times 991
ELASTIC_STRENGTH = 991 * (2 * math.sqrt(math.pi) * 8) ** -1.5 / math.sqrt(3) / 64


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the smaller bound comes first: got {bounds}")
    return bounds


Part = Annotated[float, Field(gt=0, le=1)]
Parts = Annotated[tuple[Part, Part], AfterValidator(_ordered)]
Divisor = Annotated[int, Field(ge=1)]


class FlipOptions(DistortionOptions):
    """Mirror along one axis; part of the target where it stands in `views.geometry`."""

    axis: int = Field(-1, ge=-3, le=-1, description="spatial axis, counted from the last")


class IntensityJitterOptions(DistortionOptions):
    """Brightness and contrast in random order, by torchvision's formulas."""

    brightness: float = Field(0.4, ge=0, le=1, description="factor is uniform in 1 +/- this")
    contrast: float = Field(0.4, ge=0, le=1, description="factor is uniform in 1 +/- this")


class GaussianBlurOptions(DistortionOptions):
    """Gaussian blur, a sigma for every image."""

    low: float = Field(0.1 / 224, gt=0, le=1, description="smallest sigma, part of the crop's side")
    high: float = Field(2.0 / 224, gt=0, le=1, description="largest sigma, part of the crop's side")

    @model_validator(mode="after")
    def _low_comes_first(self) -> GaussianBlurOptions:
        _ordered((self.low, self.high))
        return self


class SolarizeOptions(DistortionOptions):
    """Invert bright pixels."""

    threshold: float = Field(0.5, ge=0, le=1, description="pixels from this value on are inverted")


class BezierOptions(DistortionOptions):
    """A random monotone curve on the intensities."""

    inverted: float = Field(0.5, ge=0, le=1, description="probability of a falling curve")


class ElasticOptions(DistortionOptions):
    """Smooth random fields push pixels around within their plane."""

    sigma: float = Field(
        8 / 64, gt=0, le=1, description="smoothness of the fields, part of the longest side"
    )
    strength: float = Field(
        ELASTIC_STRENGTH,
        gt=0,
        le=1,
        description="root mean square of how far a pixel moves along each axis, far from the "
        "border, part of the longest side; this is alpha 991 on crops of 64 x 64 x 32",
    )


class BlockOptions(DistortionOptions):
    """Random blocks; each axis of each block has a side of its own."""

    blocks: int = Field(10, ge=1, description="blocks at most")
    stop: float = Field(0.1, ge=0, le=1, description="probability to stop after each block")
    margin: float = Field(
        3 / 224, ge=0, lt=0.5, description="least distance to the border, part of the crop's side"
    )


class InnerCutoutOptions(BlockOptions):
    """Blocks are filled."""

    side: Parts = Field((10 / 224, 70 / 224), description="bounds of a block's side")
    fill: float = Field(0.0, ge=0, le=1, description="value put into the blocks; 0 is black")


class OuterCutoutOptions(BlockOptions):
    """All but the blocks is filled."""

    side: Parts = Field((154 / 224, 174 / 224), description="bounds of a block's side")
    fill: float = Field(0.0, ge=0, le=1, description="value put around the blocks; 0 is black")


class NoiseOptions(BlockOptions):
    """Random blocks, and noise."""

    margin: float = Field(
        3 / 64, ge=0, lt=0.5, description="least distance to the border, part of the crop's side"
    )
    sides: tuple[Parts, ...] | None = Field(
        None,
        min_length=2,
        max_length=3,
        description="bounds of a block's side along each axis, part of it; none: as `side` says",
    )
    fill: Literal["noise", "constant"] = Field(
        "noise", description="U(0, 1) for every pixel, or one such number for the image"
    )


class NoiseInpaintOptions(NoiseOptions):
    """Blocks are filled with noise."""

    blocks: int = Field(1, ge=1, description="blocks at most")
    side: tuple[Divisor, Divisor] = Field(
        (6, 3), description="smallest and largest side: the crop's side divided by these"
    )

    @model_validator(mode="after")
    def _smallest_comes_first(self) -> NoiseInpaintOptions:
        if self.side[0] < self.side[1]:
            raise ValueError(f"the smaller side comes first, so the larger divisor: {self.side}")
        return self


class NoiseOutpaintOptions(NoiseOptions):
    """All but the blocks is filled with noise."""

    side: Parts = Field((3 / 7, 4 / 7), description="bounds of a block's side")


class PatchSwapOptions(DistortionOptions):
    """Blocks change places, two and two."""

    swaps: int = Field(10, ge=1, description="swaps, one after the other")
    side: Parts = Field((10 / 224, 15 / 224), description="bounds of a block's side")
    margin: float = Field(
        3 / 224, ge=0, lt=0.5, description="least distance to the border, part of the crop's side"
    )
    disjoint: bool = Field(
        True,
        description="the two blocks never overlap and each swap sees those before, so no pixel is "
        "lost; false copies from the undistorted image and lets blocks overlap, as the public code",
    )


class PixelShuffleOptions(DistortionOptions):
    """Pixels change places inside small windows."""

    windows: int = Field(
        100, ge=1, description="windows; TransVW has 5, STEP 100, Models Genesis 10000"
    )
    largest: Divisor = Field(10, description="largest side of a window: the crop's side over this")


class OneOfOptions(DistortionOptions):
    """One distortion out of several for each image."""

    of: list[DistortionChoice] = Field(min_length=1, description="distortions to choose from")
    weights: list[float] = Field(
        description="probability of each; what is missing to 1 leaves images as they are"
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> OneOfOptions:
        if len(self.weights) != len(self.of):
            raise ValueError(
                f"each distortion has a weight: got {len(self.weights)} weights for {len(self.of)}"
            )
        if min(self.weights) < 0 or math.fsum(self.weights) > 1 + 1e-6:
            raise ValueError(f"weights are probabilities, at most 1 in sum: got {self.weights}")
        return self


def _component(
    name: str, options: type[Options], home: str, summary: str, paper: str = ""
) -> Component:
    """Return a component whose class is imported when it is built; `home` is "module.Class"."""

    def build(options: Options) -> Distortion:
        module, _, cls = home.partition(".")
        built: Distortion = getattr(import_module(f"dira_distortions.{module}"), cls)(options)
        return built

    return Component(name, options, build, summary, paper)


def _build_one_of(options: OneOfOptions) -> Distortion:
    from dira_core import build_distortion
    from dira_distortions.one_of import OneOf

    parts = []
    for choice in options.of:
        assert isinstance(choice.options, DistortionOptions), "the engine admits no others"
        parts.append((build_distortion(choice), choice.options.p))
    return OneOf(options.weights, parts)


@hookimpl
def dira_distortions() -> Iterable[Component]:
    """Geometry, intensity, blocks, places, and the choice between them."""
    dira, genesis = "arXiv:2204.10437", "arXiv:1908.06912"
    yield _component("flip", FlipOptions, "geometry.Flip", "mirrors along one axis")
    yield _component(
        "intensity-jitter",
        IntensityJitterOptions,
        "intensity.IntensityJitter",
        "brightness and contrast, as torchvision's ColorJitter on grey images",
    )
    yield _component(
        "gaussian-blur", GaussianBlurOptions, "intensity.GaussianBlur", "blurs, sigma by image"
    )
    yield _component(
        "solarize", SolarizeOptions, "intensity.Solarize", "inverts bright pixels, as PIL"
    )
    yield _component(
        "bezier", BezierOptions, "intensity.Bezier", "a random monotone intensity curve", genesis
    )
    yield _component(
        "elastic",
        ElasticOptions,
        "elastic.Elastic",
        "pushes pixels around by smooth fields",
        "arXiv:2102.10680",
    )
    yield _component(
        "inner-cutout", InnerCutoutOptions, "filling.InnerCutout", "blacks out random blocks", dira
    )
    yield _component(
        "outer-cutout",
        OuterCutoutOptions,
        "filling.OuterCutout",
        "blacks out all but random blocks",
        dira,
    )
    yield _component(
        "noise-inpaint",
        NoiseInpaintOptions,
        "filling.NoiseInpaint",
        "fills random blocks with noise",
        genesis,
    )
    yield _component(
        "noise-outpaint",
        NoiseOutpaintOptions,
        "filling.NoiseOutpaint",
        "fills all but random blocks with noise",
        genesis,
    )
    yield _component(
        "patch-swap", PatchSwapOptions, "places.PatchSwap", "swaps pairs of small blocks", dira
    )
    yield _component(
        "pixel-shuffle",
        PixelShuffleOptions,
        "places.PixelShuffle",
        "shuffles pixels inside small windows",
        genesis,
    )
    yield Component(
        "one-of", OneOfOptions, _build_one_of, summary="one distortion of several, or none"
    )
