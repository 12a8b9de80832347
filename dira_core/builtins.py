"""The components of the engine itself, registered through the same hooks as everybody's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dira_core.components import Component, Options
from dira_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from dira_core.data import Window
    from dira_core.roles import Backbone, Source
    from dira_core.targets import Labels, Masks

DIRA_API = 1

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", "")
"""Of images; a file without a suffix may be DICOM."""

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mhd", ".mha")
"""What the folder source looks at besides."""


CACHE = "cache.json"
"""The file that makes a folder a cache."""

CLAIM = "dira-source.json"
"""A folder with this file is for the source of whoever wrote it, not for `folder`."""


Millimetres = Annotated[float, Field(ge=0.01, le=1000)]


class ReadOptions(Options):
    """How the intensities of a file become numbers in [0, 1]."""

    window: Literal["auto", "full", "percentile"] | tuple[float, float] = Field(
        "auto",
        description="what maps to 0 and 1. auto: 8 bit by its full range; DICOM by its VOI LUT or "
        "window; else percentiles 0.5 and 99.5. full: range of the bit depth. Or two pixel values",
    )


class VolumeOptions(ReadOptions):
    """How volumes are read, and images."""

    spacing: tuple[Millimetres, Millimetres, Millimetres] | None = Field(
        None, description="of volumes: mm along depth, height and width they are resampled to"
    )
    first_of_4d: bool = Field(
        False, description="take the first volume of a 4-D file, which is refused otherwise"
    )


class FolderOptions(VolumeOptions):
    """A folder of images, or of volumes."""

    path: Path = Field(description="folder, searched with its sub-folders")
    series: bool | Literal["split"] = Field(
        False,
        description="a folder of DICOM slices is one volume; split: each series in it is one, told "
        "by the headers of all its files",
    )


class ManifestOptions(VolumeOptions):
    """A CSV file with one image or volume a line."""

    path: Path = Field(description="CSV file with a header; image paths are relative to its folder")
    image: str = Field("image", description="column of the image's path")
    label: str | None = Field(None, description="column used by probes, never in pretraining")
    split: str | None = Field(None, description="keep only lines whose `split` column says this")


class CacheOptions(Options):
    """A folder that `dira data cache` wrote."""

    path: Path = Field(description="the folder")
    split: str | None = Field(None, description="keep only images of this split of the source")


class ShardsOptions(ReadOptions):
    """Tar files in the layout of WebDataset."""

    path: str = Field(
        description="folder of .tar files, one of them, or a pattern (* ? {000..012} {a,b}); "
        "local, or any fsspec URL such as s3://bucket/train-*.tar"
    )
    image: str | None = Field(
        None, description="ending of the image in a sample; none takes the first that may be one"
    )
    label: str | None = Field(
        None, description="cls, or a key of the json in a sample: for probes, never in pretraining"
    )
    mixed: int = Field(8, ge=1, description="shards whose images an epoch shuffles together")
    cache: Path | None = Field(
        None, description="folder for copies of remote shards; none is one of the user's own"
    )
    cache_gb: float = Field(32.0, gt=0, description="GiB of copies that are kept")


class PhantomOptions(Options):
    """Procedural chest radiographs, a function of the image's position alone."""

    n: int = Field(2048, ge=1, description="images")
    size: int = Field(96, ge=32, description="side in px")


Extent = Annotated[int, Field(ge=16)]


class Phantom3dOptions(Options):
    """Procedural CT-like volumes, a function of the volume's position alone."""

    n: int = Field(512, ge=1, description="volumes")
    size: tuple[Extent, Extent, Extent] = Field(
        (32, 64, 64), description="depth, height and width in px, each at least 16"
    )


SplitColumn = Annotated[
    str | None,
    Field(
        description="column of train, validation, test; none, or a file without it: random 80/20"
    ),
]
PatientColumn = Annotated[
    str | None,
    Field(description="column of patients; none, or a file without it: each image is one"),
]


class CsvOptions(Options):
    """A CSV file with one labelled image a line."""

    path: Path = Field(description="CSV file with a header; image paths are relative to its folder")
    image: str = Field("image", description="column of the image's path")
    label: str | None = Field(None, description="column of names: an image has one of the classes")
    labels: tuple[str, ...] = Field(
        (), description="columns of 0, 1 or nothing (not known): an image may have several"
    )
    classes: tuple[str, ...] | None = Field(
        None, description="names of `label` to tell apart; lines with others are left out"
    )
    split: SplitColumn = "split"
    patient: PatientColumn = "patient"


class MasksOptions(Options):
    """Images with masks: two folders, or a CSV file."""

    path: Path = Field(description="folder of images, or CSV file with columns of paths")
    masks: Path | None = Field(None, description="folder of masks, named as their images")
    image: str = Field("image", description="column of the image's path")
    mask: str = Field("mask", description="column of the mask's path; lines without are left out")
    classes: dict[str, int] = Field(
        default={}, description="pixel value of each class; none: all but 0 is the foreground"
    )
    ignore: int | None = Field(None, description="pixel value of what does not count")
    split: SplitColumn = "split"
    patient: PatientColumn = "patient"


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


def is_cache(value: str | Path) -> bool:
    """Say whether a path is a folder with a cache in it."""
    return (Path(value) / CACHE).is_file()


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
        accepts=lambda value: value.endswith(".csv"),
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
                "patience": 20,
                "plateau": None,
                "crop": (0.485, 1.0),
                "crop_p": 0.25,
                "flip_p": 0.0,
            }
        },
    )
