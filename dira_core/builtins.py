"""The components of the engine itself, registered through the same hooks as everybody's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from dira_core.components import Component, Options
from dira_core.hookspecs import hookimpl
from dira_core.source_options import (
    CLAIM,
    IMAGE_SUFFIXES,
    CacheOptions,
    FolderOptions,
    ManifestOptions,
    Phantom3dOptions,
    PhantomOptions,
    ShardsOptions,
    is_cache,
)
from dira_core.target_options import CsvOptions, MasksOptions

if TYPE_CHECKING:
    from dira_core.data import Window
    from dira_core.export import Pretrained
    from dira_core.exports.libraries import Twin
    from dira_core.roles import Backbone, Source
    from dira_core.targets import Labels, Masks

DIRA_API = 1


class ResNetOptions(Options):
    """A residual network, He et al., CVPR 2016, arXiv:1512.03385."""

    zero_init_residual: bool = Field(
        False, description="start every residual branch at zero (Goyal et al., arXiv:1706.02677)"
    )


def build_folder(options: FolderOptions) -> Source:
    from dira_core.data.folder import FolderSource

    return FolderSource(options)


def build_manifest(options: ManifestOptions) -> Source:
    from dira_core.data.manifest import ManifestSource

    return ManifestSource(options)


def build_cache(options: CacheOptions) -> Source:
    from dira_core.data.cache import CacheSource

    return CacheSource(options)


def build_shards(options: ShardsOptions) -> Source:
    from dira_core.data.shards import ShardSource

    return ShardSource(options)


def build_phantom(options: PhantomOptions) -> Source:
    from dira_core.data.phantom import PhantomSource

    return PhantomSource(options)


def _is_folder(value: str) -> bool:
    known = is_cache(value) or _is_shards(value) or (Path(value) / CLAIM).is_file()
    return Path(value).is_dir() and not known


def _is_shards(value: str) -> bool:
    """Say whether a value means tar shards: by its name, or a folder with nothing else in it."""
    if "://" in value or value.endswith(".tar"):
        return True
    if not Path(value).is_dir():
        return False
    entries = [entry for entry in os.scandir(value) if not entry.name.startswith(".")]
    endings = {os.path.splitext(entry.name)[1].lower() for entry in entries}
    return ".tar" in endings and not endings & {*IMAGE_SUFFIXES, ""}


def build_phantom3d(options: Phantom3dOptions) -> Source:
    from dira_core.data.phantom3d import Phantom3dSource

    return Phantom3dSource(options)


@hookimpl
def dira_sources() -> Iterable[Component]:
    """Folder, manifest, cache, shards and phantom."""
    yield Component(
        "folder",
        FolderOptions,
        build_folder,
        summary="PNG, JPEG, TIFF and DICOM files of a folder; or NIfTI, MetaImage, DICOM series",
        dims=(2, 3),
        accepts=_is_folder,
    )
    yield Component(
        "manifest",
        ManifestOptions,
        build_manifest,
        summary="images or volumes listed in a CSV file",
        dims=(2, 3),
        accepts=lambda value: value.lower().endswith(".csv"),
    )
    yield Component(
        "cache",
        CacheOptions,
        build_cache,
        summary="images decoded once, from `dira data cache`",
        dims=(2, 3),
        accepts=is_cache,
    )
    yield Component(
        "shards",
        ShardsOptions,
        build_shards,
        summary="images in tar files, local or remote, in the layout of WebDataset",
        dims=(2,),
        accepts=_is_shards,
    )
    yield Component(
        "phantom",
        PhantomOptions,
        build_phantom,
        summary="procedural chest radiographs with known labels, no files needed",
        dims=(2,),
    )
    yield Component(
        "phantom3d",
        Phantom3dOptions,
        build_phantom3d,
        summary="procedural CT-like volumes with known labels, no files needed",
        dims=(3,),
    )


def _resnet(depth: int) -> Component:
    def build(options: ResNetOptions, channels: int, dims: int) -> Backbone:
        from dira_core.nn.resnet import ResNet

        return ResNet(depth, channels, zero_init_residual=options.zero_init_residual)

    return Component(
        f"resnet{depth}",
        ResNetOptions,
        build,
        summary=f"torchvision's ResNet-{depth} as a pyramid of five maps",
        paper="arXiv:1512.03385",
        dims=(2,),
    )


@hookimpl
def dira_backbones() -> Iterable[Component]:
    """The ResNets of torchvision."""
    yield from map(_resnet, (18, 34, 50, 101))


def build_csv(options: CsvOptions, window: Window) -> Labels:
    from dira_core.data.labelled import csv_labels

    return csv_labels(options, window)


def build_masks(options: MasksOptions, window: Window) -> Masks:
    from dira_core.data.labelled import file_masks

    return file_masks(options, window)


def build_torchvision(options: Options, weights: Pretrained) -> Twin:
    from dira_core.exports.libraries import torchvision

    return torchvision(weights)


def build_timm(options: Options, weights: Pretrained) -> Twin:
    from dira_core.exports.libraries import timm

    return timm(weights)


def build_smp(options: Options, weights: Pretrained) -> Twin:
    from dira_core.exports.libraries import smp

    return smp(weights)


@hookimpl
def dira_targets() -> Iterable[Component]:
    """Labels in a CSV file, and masks in files.

    They bring along how the public code behind the paper fine-tunes: on ChestX-ray14 the first,
    on SIIM-ACR and Montgomery the second.
    """
    yield Component(
        "csv",
        CsvOptions,
        build_csv,
        summary="FILE.csv: image, label (or columns of 0 and 1), patient, split",
        dims=(2, 3),
        defaults={
            "training": {
                "optimizer": {"lr": 2e-4, "schedule": "constant"},
                "epochs": 1000,
                "patience": 10,
                "plateau": 5,
                "crop": (0.08, 1.0),
                "crop_p": 1.0,
                "flip_p": 0.5,
            }
        },
    )
    yield Component(
        "masks",
        MasksOptions,
        build_masks,
        summary="a folder of images and one of masks, or FILE.csv: image, mask, patient, split",
        dims=(2, 3),
        defaults={
            "training": {
                "optimizer": {"lr": 1e-3, "schedule": "epoch-cosine"},
                "epochs": 200,
                "least_steps": 10,
                "least_validation": 5,
                "few_passes": 250,
                "patience": 20,
                "plateau": None,
                "crop": (0.485, 1.0),
                "crop_p": 0.25,
                "flip_p": 0.0,
            }
        },
    )


@hookimpl
def dira_exports() -> Iterable[Component]:
    """Offer networks of other libraries that take a ResNet, or a U-Net on one."""
    yield Component(
        "torchvision",
        Options,
        build_torchvision,
        summary="the encoder as torchvision's ResNet without `fc`",
        dims=(2,),
    )
    yield Component(
        "timm",
        Options,
        build_timm,
        summary="the encoder as timm's ResNet without `fc`",
        dims=(2,),
    )
    yield Component(
        "smp",
        Options,
        build_smp,
        summary="encoder, decoder and head as segmentation_models_pytorch's `Unet`",
        dims=(2,),
    )
