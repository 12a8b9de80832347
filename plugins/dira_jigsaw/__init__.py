"""Jigsaw puzzles: which of some permutations shuffled the tiles of an image?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dira_core import Component, DistortionOptions, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator, Distortion

DIRA_API = 1

# vissl has 2000 for 1.3 million photographs. Here sources are smaller and each permutation should
# be met often; and 100 of them still differ in at least six of nine tiles.
Permutations = Annotated[int, Field(ge=2, le=362_880, description="permutations of the nine tiles")]


class JigsawOptions(Options):
    """Solving jigsaw puzzles, Noroozi & Favaro, ECCV 2016."""

    n_perms: Permutations = 100


class ShuffleOptions(DistortionOptions):
    """Shuffle 3 x 3 tiles; `n_perms` is that of the Discriminator."""

    n_perms: Permutations = 100


def build(options: JigsawOptions, backbone: Backbone) -> Discriminator:
    """Make a jigsaw classifier for a backbone."""
    from dira_jigsaw.jigsaw import Jigsaw

    return Jigsaw(options, backbone)


def build_shuffle(options: ShuffleOptions) -> Distortion:
    """Make the distortion that shuffles tiles."""
    from dira_jigsaw.jigsaw import Shuffle

    return Shuffle(options)


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer the jigsaw with its views, and the optimizer of vissl."""
    yield Component(
        "jigsaw",
        JigsawOptions,
        build,
        summary="which permutation shuffled the tiles of an image",
        paper="arXiv:1603.09246",
        dims=(2,),
        defaults={
            "views": {"each": [{"distort": [{"name": "jigsaw"}]}]},
            "optimizer": {
                "name": "sgd",
                "lr": 0.1,
                "lr_batch": 256,
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "schedule": "cosine",  # vissl's falls in steps over 105 epochs
            },
        },
    )


@hookimpl
def dira_distortions() -> Iterable[Component]:
    """Offer the shuffle, which says what it did."""
    yield Component(
        "jigsaw",
        ShuffleOptions,
        build_shuffle,
        summary="shuffles 3 x 3 tiles, the permutation's number is the label",
        paper="arXiv:1603.09246",
        dims=(2,),
    )
