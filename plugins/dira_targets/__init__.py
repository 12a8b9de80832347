"""Labelled sets in the layouts they are distributed in, trained as published.

The defaults are those of the public code that the paper's authors fine-tune with, as far as a plan
can say them; what differs is in docs/transfer.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dira_core import Component, Options, hookimpl

if TYPE_CHECKING:
    from dira_core import Labels, Masks

DIRA_API = 1

CHEST = {
    "training": {
        "optimizer": {"name": "adam", "lr": 2e-4, "weight_decay": 0.0, "schedule": "constant"},
        "batch_size": 32,
        "epochs": 1000,
        "patience": 10,
        "plateau": 5,
        "crop": (0.08, 1.0),
        "crop_p": 1.0,
        "flip_p": 0.5,
    }
}
"""How findings of chest radiographs are fine-tuned."""

LUNGS = {
    "training": {
        "optimizer": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0, "schedule": "epoch-cosine"},
        "batch_size": 32,
        "epochs": 200,
        "patience": 20,
        "plateau": None,
        "crop": (0.485, 1.0),
        "crop_p": 0.25,
        "flip_p": 0.0,
    }
}
"""How masks of chest radiographs are fine-tuned."""


class ChestXray14Options(Options):
    """NIH's own distribution.

    Data_Entry_2017.csv (or Data_Entry_2017_v2020.csv)
    train_val_list.txt, test_list.txt
    images*/**/00000001_000.png ... (any sub-folders)
    """

    path: Path = Field(description="folder that holds this")


class CheXpertOptions(Options):
    """CheXpert-v1.0 or CheXpert-v1.0-small.

    train.csv, valid.csv (this one is tested on, as published)
    train/patient00001/study1/view1_frontal.jpg ..., valid/...
    """

    path: Path = Field(description="that folder")
    uncertain: Literal["lsr-ones", "lsr-zeros", "ones", "zeros", "ignore"] = Field(
        "lsr-ones",
        description="what -1 means in training: uniform in [0.55, 0.85] or in [0, 0.3], drawn once "
        "an image and finding; 1; 0; not known",
    )
    views: Literal["all", "frontal"] = Field("all", description="which views are taken")


class SiimOptions(Options):
    """DICOM files, in any sub-folders, and the runs of their masks.

    stage_2_train.csv (or train-rle.csv, stage_1_train.csv): ImageId, EncodedPixels
    dicom-images-train/*/*/UID.dcm ..., dicom-images-test/*/*/UID.dcm ...
    """

    path: Path = Field(description="folder that holds this")
    split: Literal["official"] | None = Field(
        "official",
        description="test on dicom-images-test where the file has its masks; none, or without "
        "them: random 80/20 by patient",
    )


class MontgomeryOptions(Options):
    """MontgomerySet of the National Library of Medicine.

    CXR_png/MCUCXR_0001_0.png ...
    ManualMask/leftMask/MCUCXR_0001_0.png ..., ManualMask/rightMask/...
    """

    path: Path = Field(description="that folder")
    lungs: Literal["together", "apart"] = Field(
        "together", description="one class as published, or left and right"
    )


def build_chestxray14(options: ChestXray14Options, window: Any) -> Labels:
    from dira_targets.chestxray14 import read

    return read(options.path, window)


def build_chexpert(options: CheXpertOptions, window: Any) -> Labels:
    from dira_targets.chexpert import read

    return read(options, window)


def build_siim(options: SiimOptions, window: Any) -> Masks:
    from dira_targets.siim import read

    return read(options, window)


def build_montgomery(options: MontgomeryOptions, window: Any) -> Masks:
    from dira_targets.montgomery import read

    return read(options, window)


@hookimpl
def dira_targets() -> Iterable[Component]:
    """The paper's two-dimensional targets."""
    yield Component(
        "chestxray14",
        ChestXray14Options,
        build_chestxray14,
        summary="14 findings of 112,120 radiographs, NIH's split",
        paper="Wang et al., CVPR 2017, arXiv:1705.02315",
        dims=(2,),
        defaults=CHEST,
    )
    yield Component(
        "chexpert",
        CheXpertOptions,
        build_chexpert,
        summary="14 findings of 224,316 radiographs, 5 of them scored",
        paper="Irvin et al., AAAI 2019, arXiv:1901.07031",
        dims=(2,),
        defaults=CHEST,
    )
    yield Component(
        "siim-acr",
        SiimOptions,
        build_siim,
        summary="masks of pneumothorax in 12,047 radiographs",
        paper="SIIM-ACR Pneumothorax Segmentation, Kaggle 2019",
        dims=(2,),
        defaults=LUNGS,
    )
    yield Component(
        "montgomery",
        MontgomeryOptions,
        build_montgomery,
        summary="masks of both lungs in 138 radiographs",
        paper="Jaeger et al., IEEE TMI 33(2), 2014",
        dims=(2,),
        defaults=LUNGS,
    )
