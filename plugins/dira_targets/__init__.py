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
        "least_steps": 4,  # Montgomery has no more: part of its labels trains as long
        "least_validation": 5,
        "patience": 20,
        "plateau": None,
        "crop": (0.485, 1.0),
        "crop_p": 0.25,
        "flip_p": 0.0,
    }
}
"""How masks of chest radiographs are fine-tuned."""


def volumes(batch_size: int, patience: int) -> dict[str, Any]:
    """Return how volumes are fine-tuned in Models Genesis; it crops nothing."""
    return {
        "training": {
            "optimizer": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0, "schedule": "constant"},
            "batch_size": batch_size,
            "epochs": 10_000,
            "least_steps": 7,  # LiTS has no more
            "least_validation": 5,
            "patience": patience,
            "plateau": 6,
            "crop_p": 0.0,
            "flip_p": 0.0,
        }
    }


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


Extent = tuple[float, float, float]


class CandidatesOptions(Options):
    """A CSV file of places in volumes, each a finding or not (emboli, nodules).

    image,x,y,z,label and, where known, patient and split
    image: a volume, relative to the file; x, y, z: mm; label: 1 or 0
    """

    path: Path = Field(description="that file")
    axes: Literal["LPS", "RAS"] = Field(
        "LPS", description="where x, y, z rise to: left, back, head as in DICOM; or right, front"
    )
    extent: Extent = Field(
        (32.0, 64.0, 64.0), description="mm around a place along depth, height and width"
    )
    negatives: float | None = Field(
        None, gt=0, description="places with label 0 for each with 1, in each part; none takes all"
    )


class Luna16Options(Options):
    """LUNA16's subsets and candidates.

    candidates_V2.csv (or candidates.csv): seriesuid, coordX, coordY, coordZ, class
    subset0/UID.mhd and .raw ... subset9/ (0 to 4 train, 5 and 6 stop, 7 to 9 are tested)
    """

    path: Path = Field(description="folder that holds this")
    extent: Extent = Field(
        (32.0, 64.0, 64.0), description="mm around a candidate along depth, height and width"
    )
    negatives: float | None = Field(
        4.0, gt=0, description="others for each nodule, in each part; none takes all 750,000"
    )


class LidcOptions(Options):
    """LIDC-IDRI of The Cancer Imaging Archive: CT series and the readings, in any sub-folders.

    LIDC-IDRI-0001/STUDY/SERIES/*.dcm ...
    *.xml (beside the slices, or LIDC-XML-only)
    patients up to 510 train, up to 610 stop, the others are tested
    """

    path: Path = Field(description="folder that holds this")
    readers: int = Field(
        1, ge=1, le=4, description="how many of the four must have outlined a nodule"
    )
    extent: Extent = Field(
        (32.0, 64.0, 64.0), description="mm around a nodule along depth, height and width"
    )


class LitsOptions(Options):
    """LiTS, in any sub-folders.

    volume-0.nii (or .nii.gz) and segmentation-0.nii ... 130
    0 to 99 train, 100 to 114 stop, 115 on are tested
    """

    path: Path = Field(description="folder that holds this")


class BratsOptions(Options):
    """BraTS, in any sub-folders (2018: HGG and LGG; later years).

    PATIENT/PATIENT_flair.nii.gz, _t1, _t1ce, _t2 and PATIENT_seg.nii.gz
    a third of the patients is tested
    """

    path: Path = Field(description="folder that holds this")
    modality: Literal["flair", "t1", "t1ce", "t2", "all"] = Field(
        "flair", description="what the network sees; all: four channels (--set channels=4)"
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


def build_candidates(options: CandidatesOptions, window: Any) -> Labels:
    from dira_targets.candidates import read

    return read(options, window)


def build_luna16(options: Luna16Options, window: Any) -> Labels:
    from dira_targets.luna16 import read

    return read(options, window)


def build_lidc(options: LidcOptions, window: Any) -> Masks:
    from dira_targets.lidc import read

    return read(options, window)


def build_lits(options: LitsOptions, window: Any) -> Masks:
    from dira_targets.lits import read

    return read(options.path, window)


def build_brats(options: BratsOptions, window: Any) -> Masks:
    from dira_targets.brats import read

    return read(options, window)


@hookimpl
def dira_targets() -> Iterable[Component]:
    """The paper's targets, and candidates of any kind in place of its private one."""
    yield Component(
        "candidates",
        CandidatesOptions,
        build_candidates,
        summary="places in volumes, each a finding or not; trained as emboli were",
        paper="Zhou et al., MedIA 67, 2021, arXiv:2004.07882",
        dims=(3,),
        defaults=volumes(24, 38),
    )
    yield Component(
        "luna16",
        Luna16Options,
        build_luna16,
        summary="which candidates in 888 chest CTs are nodules",
        paper="Setio et al., MedIA 42, 2017, arXiv:1612.08012",
        dims=(3,),
        defaults=volumes(24, 10),
    )
    yield Component(
        "lidc-idri",
        LidcOptions,
        build_lidc,
        summary="masks of nodules in 1,018 chest CTs",
        paper="Armato et al., Med Phys 38(2), 2011",
        dims=(3,),
        defaults=volumes(16, 50),
    )
    yield Component(
        "lits",
        LitsOptions,
        build_lits,
        summary="masks of the liver in 130 abdominal CTs",
        paper="Bilic et al., MedIA 84, 2023, arXiv:1901.04056",
        dims=(3,),
        defaults=volumes(16, 20),
    )
    yield Component(
        "brats",
        BratsOptions,
        build_brats,
        summary="masks of the whole tumour in 285 brain MRIs",
        paper="Bakas et al., arXiv:1811.02629",
        dims=(3,),
        defaults=volumes(16, 30),
    )
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
