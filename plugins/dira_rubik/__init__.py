"""Rubik's cube: which sub-cubes of a volume were moved, turned or masked? And jigsaws in 3-D."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dira_core import Component, DistortionOptions, Options, Preset, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator, Distortion

DIRA_API = 1

Permutations = Annotated[int, Field(ge=2, le=40_320, description="permutations of eight cubes")]


class RubikOptions(Options):
    """Solving Rubik's cube, Zhuang et al., MICCAI 2019."""

    n_perms: Permutations = 100
    turns: bool = Field(True, description="also tell which cubes were turned by 180 degrees")
    masks: bool = Field(False, description="also tell which cubes were masked (Rubik's cube+)")


class CubesOptions(DistortionOptions):
    """Move, turn and mask 2 x 2 x 2 sub-cubes; `n_perms` is that of the Discriminator."""

    n_perms: Permutations = 100
    turned: float = Field(0.5, ge=0, le=1, description="probability that a cube is turned")
    masked: float = Field(0.0, ge=0, le=1, description="probability that a cube is masked")


def build(options: RubikOptions, backbone: Backbone) -> Discriminator:
    """Make a classifier of moves for a backbone."""
    from dira_rubik.rubik import Rubik

    return Rubik(options, backbone)


def build_cubes(options: CubesOptions) -> Distortion:
    """Make the distortion that moves cubes."""
    from dira_rubik.cubes import Cubes

    return Cubes(options)


# Stepwise Pretraining's public code has Nadam; Adam differs from it in the first steps
OPTIMIZER = {
    "name": "adam",
    "lr": 1e-4,
    "lr_batch": None,
    "betas": (0.5, 0.999),
    "weight_decay": 0.0,
    "schedule": "constant",
}


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer Rubik's cube with its views."""
    yield Component(
        "rubik",
        RubikOptions,
        build,
        summary="how the eight sub-cubes of a volume were moved, turned and masked",
        paper="arXiv:1910.02241",
        dims=(3,),
        defaults={
            "views": {"each": [{"distort": [{"name": "rubik"}]}]},
            "optimizer": OPTIMIZER,
        },
    )


@hookimpl
def dira_distortions() -> Iterable[Component]:
    """Offer the moves, which say what they did."""
    yield Component(
        "rubik",
        CubesOptions,
        build_cubes,
        summary="moves, turns and masks 2 x 2 x 2 sub-cubes; the label says how",
        paper="arXiv:1910.02241",
        dims=(3,),
    )


def _preset(discriminator: dict[str, Any], moves: dict[str, Any]) -> dict[str, Any]:
    return {
        "backbone": "unet3d",
        "discriminator": {"name": "rubik", **discriminator},
        "restorer": "none",
        "adversary": "none",
        "views": {
            "size": [64, 64, 64],  # Stepwise Pretraining's public code
            "scale": [0.5, 1.0],
            "appearance": [],
            "each": [{"distort": [{"name": "rubik", **moves}]}],
        },
        "train": {"batch_size": 8},
    }


@hookimpl
def dira_presets() -> Iterable[Preset]:
    """Offer the three puzzles."""
    yield Preset("rubik", _preset({}, {}), "Rubik's cube: moved and turned sub-cubes")
    plus = _preset({"masks": True}, {"masked": 0.5})
    yield Preset("rubik/plus", plus, "Rubik's cube+: masked ones as well")
    jigsaw = _preset({"turns": False}, {"turned": 0.0})
    yield Preset("rubik/jigsaw", jigsaw, "a jigsaw of 2 x 2 x 2: moved ones alone")
