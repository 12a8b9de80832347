"""Where images come from, as data: the options of the engine's own sources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dira_core.components import Options

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
        None, description="ending of the image in a sample; none takes the only one there may be"
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


def is_cache(value: str | Path) -> bool:
    """Say whether a path is a folder with a cache in it."""
    return (Path(value) / CACHE).is_file()
