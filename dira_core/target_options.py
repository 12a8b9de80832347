"""Where labels come from, as data: the options of the engine's own targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dira_core.components import Options

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
