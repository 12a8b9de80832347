"""Rotation prediction: by how many quarter turns was the image rotated?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dira_core import Component, DistortionOptions, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator, Distortion

DIRA_API = 1


class Rotate90Options(DistortionOptions):
    """Rotate by 0 to 3 quarter turns; part of the target where it stands in `views.geometry`."""


def build(options: Options, backbone: Backbone) -> Discriminator:
    """Make a rotation classifier for a backbone."""
    from dira_rotation.rotation import Rotation

    return Rotation(backbone)


def build_rotate90(options: Rotate90Options) -> Distortion:
    """Make the distortion that rotates."""
    from dira_rotation.rotation import Rotate90

    return Rotate90()


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer rotation prediction with its views, and the optimizer of OpenSelfSup."""
    yield Component(
        "rotation",
        Options,
        build,
        summary="by how many quarter turns an image is rotated",
        paper="arXiv:1803.07728",
        dims=(2,),
        defaults={
            "views": {"each": [{"geometry": [{"name": "rotate90"}]}]},
            "optimizer": {
                "name": "sgd",
                "lr": 0.2,
                "lr_batch": 512,  # 128 images, each in four rotations
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "schedule": "cosine",  # theirs falls to a tenth after epochs 30 and 50 of 70
                "warmup_epochs": 5,
            },
        },
    )


@hookimpl
def dira_distortions() -> Iterable[Component]:
    """Offer the rotation, which says what it did."""
    yield Component(
        "rotate90",
        Rotate90Options,
        build_rotate90,
        summary="rotates by quarter turns, their number is the label",
        paper="arXiv:1803.07728",
        dims=(2,),
    )
