"""Each target reads a miniature of the layout in which its set is distributed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dira_core import measure_transfer, transfer_plan
from dira_core.errors import DataError
from dira_core.testing import check
from dira_core.transfer.splits import split
from dira_targets import chestxray14
from dira_targets import chexpert as chexpert_module
from dira_targets.chestxray14 import FINDINGS
from dira_targets.montgomery import read as read_montgomery
from dira_targets.options import (
    ChestXray14Options,
    CheXpertOptions,
    MontgomeryOptions,
    SiimOptions,
)
from dira_targets.siim import drawn_runs
from dira_targets.siim import read as read_siim

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def picture(path: Path, seed: int = 0, side: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def nih(tmp_path: Path) -> Path:
    """Twenty images of ten patients, one in no list and one not there."""
    lines, listed = [], {"train_val_list.txt": [], "test_list.txt": []}
    for i in range(20):
        name = f"{1 + i // 2:08}_{i % 2:03}.png"
        finding = ("No Finding", "Hernia", "Mass|Pleural_Thickening")[i % 3]
        lines.append(f"{name},{finding},{i % 2},{1 + i // 2},058Y,M,PA,2682,2749,0.143,0.143,")
        if i != 3:
            picture(tmp_path / f"images_{1 + i // 10:03}/images/{name}", i)
        if i != 2:
            listed["train_val_list.txt" if i < 14 else "test_list.txt"].append(name)
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    for file, names in listed.items():
        (tmp_path / file).write_text("\n".join(names) + "\n")
    return tmp_path


def test_chestxray14_is_split_by_its_lists(nih: Path) -> None:
    assert [wrong for _, wrong in check("target", "chestxray14", path=nih)] == [None, None]
    found = chestxray14.read(ChestXray14Options(path=nih), "auto")
    names = [Path(found.source.name(i)).name for i in range(len(found.source))]
    assert len(names) == 18
    assert "00000002_000.png" not in names
    assert found.split == ["train"] * 12 + ["test"] * 6
    assert found.labels.shape == (18, 14)
    assert not found.labels[0].any()
    assert found.labels[1].tolist() == [float(name == "Hernia") for name in FINDINGS]
    row = names.index("00000005_000.png")  # the ninth line
    findings = {FINDINGS[k] for k in np.flatnonzero(found.labels[row])}
    assert findings == {"Mass", "Pleural_Thickening"}
    assert found.patients[row] == "5"
    assert found.notes == [
        "ChestX-ray14: 12 train, 6 test",
        "left out: 1 images that are not there",
        "left out: 1 images that are in no list",
    ]


def test_chestxray14_says_what_is_missing(nih: Path) -> None:
    (nih / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"no test_list.txt in .*`dira targets`"):
        chestxray14.read(ChestXray14Options(path=nih), "auto")
    (nih / "Data_Entry_2017.csv").write_text("Image Index\na.png\n")
    with pytest.raises(DataError, match="no test_list|no column Finding Labels, Patient ID"):
        chestxray14.read(ChestXray14Options(path=nih), "auto")


def test_chestxray14_reads_the_table_of_2020_and_lists_of_other_systems(nih: Path) -> None:
    """Its columns have other names, and ages no letter; a list may end its lines as Windows."""
    before = chestxray14.read(ChestXray14Options(path=nih), "auto")
    old = (nih / "Data_Entry_2017.csv").read_text().splitlines()[1:]
    (nih / "Data_Entry_2017.csv").unlink()
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,"
        "OriginalImageWidth,OriginalImageHeight,OriginalImagePixelSpacing_x,"
        "OriginalImagePixelSpacing_y"
    )
    lines = [line.replace("058Y", "58").removesuffix(",") for line in old]
    (nih / "Data_Entry_2017_v2020.csv").write_text("\r\n".join([header, *lines]))
    for name in ("train_val_list.txt", "test_list.txt"):
        names = (nih / name).read_text().split()
        (nih / name).write_bytes("\r\n".join(names).encode())
    found = chestxray14.read(ChestXray14Options(path=nih), "auto")
    assert (found.split, found.patients) == (before.split, before.patients)
    assert np.array_equal(found.labels, before.labels)


def test_lists_of_chestxray14_that_share_a_patient_are_refused(nih: Path) -> None:
    """The official lists do not: 86,524 images to train on and 25,596 to test on."""
    moved = "00000001_001.png"
    for name, change in (("train_val_list.txt", -1), ("test_list.txt", 1)):
        names = (nih / name).read_text().split()
        names = [*names, moved] if change > 0 else [each for each in names if each != moved]
        (nih / name).write_text("\n".join(names))
    found = chestxray14.read(ChestXray14Options(path=nih), "auto")
    with pytest.raises(DataError, match="1 of 9 patients are in more than one part"):
        split(found.split, found.groups, found.labels, 1.0, 0, 0)


def test_a_target_is_measured_from_its_folder(nih: Path, tmp_path: Path) -> None:
    given = ["backbone=resnet18", "size=32", "way=knn"]
    plan = transfer_plan("chestxray14", str(nih), given)
    assert (plan.training.optimizer.lr, plan.training.patience) == (2e-4, 10)
    lines: list[str] = []
    done = measure_transfer("random:0", plan, tmp_path / "out", lines.append).result
    assert lines[0] == "ChestX-ray14: 12 train, 6 test"
    auc = done["scores"]["plain"]["auc"]
    assert set(auc["left_out"]) == set(FINDINGS) - {"Hernia", "Mass", "Pleural_Thickening"}


@pytest.fixture
def chexpert(tmp_path: Path) -> Path:
    """Four studies to train on, two to test on; each has a frontal and a lateral view."""
    root = tmp_path / "CheXpert-v1.0-small"
    for part, patients in (("train", range(1, 5)), ("valid", range(5, 7))):
        header = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(chexpert_module.FINDINGS)
        lines = [header]
        for who in patients:
            for view in ("frontal", "lateral"):
                inside = f"{part}/patient{who:05}/study1/view1_{view}.jpg"
                picture(root / inside, who)
                cells = ["1.0", "0.0", "-1.0" if part == "train" else "1.0", *[""] * 11]
                about = f"{root.name}/{inside},Female,68,{view.title()},AP"
                lines.append(",".join([about, *cells]))
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(
    ("policy", "low", "high"),
    [
        ("ones", 1, 1),
        ("zeros", 0, 0),
        ("lsr-ones", 0.55, 0.85),
        ("lsr-zeros", 0, 0.3),
    ],
)
def test_uncertain_labels_of_chexpert_follow_the_policy(
    chexpert: Path, policy: str, low: float, high: float
) -> None:
    given = {"path": chexpert, "uncertain": policy}
    options = CheXpertOptions.model_validate(given)
    found = chexpert_module.read(options, "auto")
    unsure = found.labels[:8, 2]
    assert ((low <= unsure) & (unsure <= high)).all()
    assert low == high or len(set(unsure)) == 8
    assert np.array_equal(found.labels, chexpert_module.read(options, "auto").labels)
    assert (found.labels[:, 0] == 1).all()
    assert not found.labels[:, 3:].any()
    assert (found.labels[8:, 2] == 1).all()


def test_chexpert_tests_on_its_validation_set_and_scores_five_findings(chexpert: Path) -> None:
    assert [wrong for _, wrong in check("target", "chexpert", path=chexpert)] == [None, None]
    options = CheXpertOptions(path=chexpert, uncertain="ignore", views="frontal")
    found = chexpert_module.read(options, "auto")
    assert found.split == ["train"] * 4 + ["test"] * 2
    assert np.isnan(found.labels[:4, 2]).all()
    assert found.patients[0] == "patient00001"
    assert len(found.scored or ()) == 5
    assert set(found.scored or ()) < set(found.classes)
    assert found.notes == ["CheXpert: 4 train, 2 test", "uncertain: 4 of 84 labels, ignore"]


def test_a_fraction_of_chexpert_leaves_its_test_set_whole(chexpert: Path) -> None:
    """The public code took 1 % of the 234 test images as well: two."""
    found = chexpert_module.read(CheXpertOptions(path=chexpert), "auto")
    whole, part = (split(found.split, found.groups, found.labels, f, 0, 0) for f in (1.0, 0.25))
    assert np.array_equal(whole.test, part.test)
    assert len(part.test) == 4
    assert len(part.fit) < len(whole.fit) == 8
    trained = {found.patients[i] for i in whole.fit}
    assert not trained & {found.patients[i] for i in whole.test}


def test_a_label_of_chexpert_that_is_not_mentioned_is_negative_and_no_number_is_refused(
    chexpert: Path,
) -> None:
    table = chexpert / "train.csv"
    found = chexpert_module.read(CheXpertOptions(path=chexpert), "auto")
    assert found.labels[0, 0] == 1  # said to be there
    assert found.labels[0, 1] == 0  # said not to be
    assert found.labels[0, 5] == 0  # not mentioned
    table.write_text(table.read_text().replace("1.0,0.0,-1.0", "1.0,0.0,maybe", 1))
    with pytest.raises(DataError, match="a label of CheXpert is 1.0, 0.0, -1.0 or empty"):
        chexpert_module.read(CheXpertOptions(path=chexpert), "auto")


def encoded(mask: np.ndarray) -> str:
    """Encode as the organisers' script: walk down the columns, count from the last run's end."""
    numbers, since, inside = [], 0, False
    for x in range(mask.shape[1]):
        for y in range(mask.shape[0]):
            if bool(mask[y, x]) != inside:
                numbers.append(since)
                since, inside = 0, not inside
            since += 1
    if inside:
        numbers.append(since)
    return " ".join(map(str, numbers))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.0, 0.3, 1.0]))
def test_runs_are_drawn_as_they_were_encoded(seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((7, 5)) < density
    assert np.array_equal(drawn_runs(encoded(mask), (7, 5)), mask)


@pytest.mark.parametrize("text", ["1", "30 6", "-2 3"])
def test_runs_that_leave_the_image_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="do not fit their image"):
        drawn_runs(text, (7, 5))


def dicom(path: Path, patient: str, seed: int) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = path.stem
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, path.stem
    data.PatientID, data.Rows, data.Columns = patient, 24, 20
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = np.random.default_rng(seed).integers(0, 255, 480).astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


@pytest.fixture
def siim(tmp_path: Path) -> Path:
    """Four images to train on, two of them of one patient, and one to test on."""
    left, right = np.zeros((24, 20), bool), np.zeros((24, 20), bool)
    left[3:9, 2:5], right[10:20, 12:15] = True, True
    lines = ["ImageId, EncodedPixels"]
    for i in range(5):
        part = "train" if i < 4 else "test"
        dicom(tmp_path / f"dicom-images-{part}/1.{i}/2.{i}/1.2.{i}.dcm", f"p{max(1, i)}", i)
        lines += [f"1.2.{i}, -1"] if i % 2 else [f"1.2.{i}, {encoded(m)}" for m in (left, right)]
    lines += ["1.2.9,-1"]
    (tmp_path / "train-rle.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_siim_unites_the_runs_of_an_image_and_tests_on_the_test_folder(siim: Path) -> None:
    assert [wrong for _, wrong in check("target", "siim-acr", path=siim)] == [None, None]
    found = read_siim(SiimOptions(path=siim), "auto")
    assert found.split == ["train"] * 4 + ["test"]
    masks, known = found.mask(0)
    assert masks.shape == (1, 24, 20)
    assert masks.sum() == 6 * 3 + 10 * 3
    assert masks[0, 3:9, 2:5].all()
    assert known.all()
    assert known.shape == found.source.read(0).pixels.shape[1:]
    assert not found.mask(1)[0].any()
    assert found.patients[0] == found.patients[1] != found.patients[2]
    assert found.notes == [
        "SIIM-ACR: 4 train, 1 test",
        "empty masks: 2 of 5",
        "left out: 1 images that are not there",
    ]


def test_siim_without_its_test_folder_is_split_at_random_by_patient(siim: Path) -> None:
    found = read_siim(SiimOptions(path=siim, split=None), "auto")
    assert found.split is None
    parts = split(found.split, found.groups, None, 1.0, 0, 0)
    sides = [{found.patients[i] for i in part} for part in (parts.fit, parts.test)]
    assert not sides[0] & sides[1]


def test_montgomery_reads_both_lungs_together_or_apart(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"CXR_png/MCUCXR_000{i}_{i % 2}.png", i)
    for side, columns in (("left", slice(12, 18)), ("right", slice(2, 8))):
        mask = np.zeros((20, 20), bool)
        mask[4:16, columns] = True
        for i in range(2):
            path = tmp_path / f"ManualMask/{side}Mask/MCUCXR_000{i}_{i % 2}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    assert [wrong for _, wrong in check("target", "montgomery", path=tmp_path)] == [None, None]
    found = read_montgomery(MontgomeryOptions(path=tmp_path), "auto")
    assert found.classes == ("lungs",)
    assert found.mask(1)[0].sum() == 2 * 12 * 6
    assert found.notes == ["Montgomery: 2 images with both masks", "left out: 1 without"]
    apart = read_montgomery(MontgomeryOptions(path=tmp_path, lungs="apart"), "auto")
    masks, _ = apart.mask(0)
    assert apart.classes == ("left lung", "right lung")
    assert masks[0, :, 12:].sum() == masks[1, :, :8].sum() == 72
    with pytest.raises(DataError, match="give the folder MontgomerySet"):
        read_montgomery(MontgomeryOptions(path=tmp_path / "CXR_png"), "auto")
