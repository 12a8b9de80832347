"""Options of the targets. A class's docstring shows the files that are expected."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dira_core import Options


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
