"""Rotation prediction: how was the image, or the volume, rotated by quarter turns?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dira_core import Component, DistortionOptions, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Backbone, Discriminator, Distortion

DIRA_API = 1


IN_3D = "arXiv:2006.03829"


class Rotate90Options(DistortionOptions):
    """Rotate by 0 to 3 quarter turns; part of the target where it stands in `views.geometry`."""


class Rotate3dOptions(DistortionOptions):
    """Rotate about one of three axes; part of the target where it stands in `views.geometry`."""


def build(options: Options, backbone: Backbone) -> Discriminator:
    """Make a rotation classifier for a backbone."""
    from dira_rotation.rotation import Rotation

    return Rotation(backbone)


def build_rotate90(options: Rotate90Options) -> Distortion:
    """Make the distortion that rotates images."""
    from dira_rotation.rotation import Rotate

    return Rotate(2)


def build_rotate3d(options: Rotate3dOptions) -> Distortion:
    """Make the distortion that rotates volumes."""
    from dira_rotation.rotation import Rotate

    return Rotate(3)


@hookimpl
def dira_discriminators() -> Iterable[Component]:
    """Offer rotation prediction with its views, and the optimizers of OpenSelfSup and Taleb."""
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
    yield Component(
        "rotation3d",
        Options,
        build,
        summary="about which axis, by how many quarter turns a volume is rotated",
        paper=IN_3D,
        dims=(3,),
        defaults={
            "views": {"each": [{"geometry": [{"name": "rotate3d"}]}]},
            "optimizer": {  # that of its public code
                "name": "adam",
                "lr": 1e-4,
                "lr_batch": None,
                "weight_decay": 0.0,
                "schedule": "constant",
            },
        },
    )


@hookimpl
def dira_distortions() -> Iterable[Component]:
    """Offer the rotations, which say what they did."""
    yield Component(
        "rotate90",
        Rotate90Options,
        build_rotate90,
        summary="rotates by quarter turns, their number is the label",
        paper="arXiv:1803.07728",
        dims=(2,),
    )
    yield Component(
        "rotate3d",
        Rotate3dOptions,
        build_rotate3d,
        summary="rotates about an axis by quarter turns, which and how many is the label",
        paper=IN_3D,
        dims=(3,),
    )
