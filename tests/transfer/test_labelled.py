from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from volumes import noise, steps

from dira_core.data.labelled import csv_labels, file_masks
from dira_core.errors import DataError, RecipeError
from dira_core.target_options import CsvOptions, MasksOptions


def write(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_a_column_of_names_makes_classes_that_exclude_each_other(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "image,kind,who,split\na.png,x,1,train\nb.png,y,1,train\nc.png,,,\nd.png,z,,test\n",
    )
    found = csv_labels(CsvOptions(path=path, label="kind", patient="who"), "auto")
    assert found.classes == ("x", "y", "z")
    assert found.exclusive
    assert found.labels.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert found.patients == ["1", "1", ""]
    assert found.groups == ["patient 1", "patient 1", "image d.png"]
    assert found.split == ["train", "train", "test"]
    assert [found.source.name(i) for i in range(3)] == ["a.png", "b.png", "d.png"]


def test_classes_choose_lines_and_their_order(tmp_path: Path) -> None:
    path = write(tmp_path, "image,kind\na.png,x\nb.png,y\nd.png,z\n")
    options = CsvOptions(path=path, label="kind", classes=("z", "x"))
    found = csv_labels(options, "auto")
    assert found.labels.tolist() == [[0, 1], [1, 0]]
    assert found.split is None
    assert found.groups == ["image a.png", "image d.png"]


def test_columns_of_zero_and_one_may_be_empty_and_lines_without_any_are_left_out(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, "image,a,b\n1.png,1,\n2.png,,\n3.png,0.0,1\n")
    found = csv_labels(CsvOptions(path=path, labels=("a", "b")), "auto")
    assert not found.exclusive
    assert np.array_equal(found.labels, [[1, np.nan], [0, 1]], equal_nan=True)
    assert len(found.source) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "name the column of the class"),
        ({"label": "kind", "labels": ("a",)}, "name the column of the class"),
        ({"label": "knid"}, "no column 'knid', did you mean 'kind'?; set target.label to one of"),
        ({"label": "kind", "classes": ("x", "w")}, "no line has the label 'w'"),
        ({"label": "same"}, "needs two classes and more, this one has 1"),
        ({"labels": ("kind",)}, "holds 'x': it takes 0, 1 and nothing"),
        ({"label": "kind", "split": "part"}, "no column 'part'"),
    ],
)
def test_a_file_that_does_not_fit_says_which_key_to_set(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, "image,kind,a,same\n1.png,x,1,s\n2.png,y,0,s\n")
    with pytest.raises((RecipeError, DataError), match=re.escape(message)):
        csv_labels(CsvOptions(path=path, **given), "auto")


def save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def test_masks_are_told_apart_by_their_values_and_ignored_pixels_do_not_count(
    tmp_path: Path,
) -> None:
    pixels = np.zeros((10, 12))
    pixels[0], pixels[1], pixels[2] = 1, 2, 127
    save(tmp_path / "m.png", pixels)
    path = write(tmp_path, "image,mask\na.png,m.png\nb.png,\n")
    options = MasksOptions(path=path, classes={"left": 1, "right": 2}, ignore=127)
    found = file_masks(options, "auto")
    masks, known = found.mask(0)
    assert found.classes == ("left", "right")
    assert len(found.source) == 1
    assert masks.sum((1, 2)).tolist() == [12, 12]
    assert (~known).sum() == 12
    alone, _ = file_masks(MasksOptions(path=path, ignore=127), "auto").mask(0)
    assert alone.sum() == 24


def test_an_empty_mask_is_a_mask(tmp_path: Path) -> None:
    save(tmp_path / "m.png", np.zeros((10, 10)))
    path = write(tmp_path, "image,mask\na.png,m.png\n")
    masks, known = file_masks(MasksOptions(path=path), "auto").mask(0)
    assert not masks.any()
    assert known.all()


def test_a_mask_whose_header_mirrors_it_against_its_image_is_refused(tmp_path: Path) -> None:
    voxels = noise(12, 14, 16, dtype="u1") // 2
    image = nib.Nifti1Image(voxels, steps("LPS", (1, 1, 2)))
    nearly = image.affine + np.random.default_rng(0).normal(0, 1e-3, (4, 4)) * [[1], [1], [1], [0]]
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    image.to_filename(tmp_path / "images/a.nii")
    options = MasksOptions(path=tmp_path / "images", masks=tmp_path / "masks")
    marked = nib.Nifti1Image((voxels > 100).astype("u1"), image.affine)
    for mask in (
        marked,
        nib.as_closest_canonical(marked),
        nib.Nifti1Image(marked.dataobj, nearly),
        nib.Nifti1Image(marked.dataobj, np.diag([-1, -1, 1, 1])),  # its place alone is lost
    ):
        mask.to_filename(tmp_path / "masks/a.nii")
        found = file_masks(options, "auto")
        read = found.source.read(0)
        assert np.array_equal(found.mask_of(0, read)[0], read.pixels > 100)
    nib.Nifti1Image(marked.dataobj, np.eye(4)).to_filename(tmp_path / "masks/a.nii")
    with pytest.raises(DataError, match=r"'a.nii' would be mirrored.*RAS.*LPS.*header"):
        found.mask_of(0, read)


def test_folders_are_paired_by_name_whatever_the_suffix(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1"):
        save(tmp_path / f"images/{name}.jpg", np.arange(400).reshape(20, 20) % 200)
    for name in ("b/1", "a/2"):
        save(tmp_path / f"masks/{name}.png", np.zeros((20, 20)))
    options = MasksOptions(path=tmp_path / "images", masks=tmp_path / "masks")
    found = file_masks(options, "auto")
    assert [found.source.name(i) for i in range(2)] == ["a/2.jpg", "b/1.jpg"]
    assert [path.name for path in found.files] == ["2.png", "1.png"]


def test_masks_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    save(tmp_path / "colour.png", np.dstack([np.zeros((9, 9)), np.ones((9, 9)), np.ones((9, 9))]))
    save(tmp_path / "gone.png", np.zeros((9, 9)))
    path = write(tmp_path, "image,mask\na.png,colour.png\nb.png,gone.png\n")
    found = file_masks(MasksOptions(path=path), "auto")
    with pytest.raises(DataError, match="is a colour picture"):
        found.mask(0)
    (tmp_path / "gone.png").unlink()
    with pytest.raises(DataError, match=r"mask 'gone.png': no such file"):
        found.mask(1)
    (tmp_path / "images").mkdir()
    save(tmp_path / "images/1.png", np.arange(100).reshape(10, 10))
    with pytest.raises(RecipeError, match=r"--set target.masks=FOLDER"):
        file_masks(MasksOptions(path=tmp_path / "images"), "auto")
    save(tmp_path / "masks/2.png", np.zeros((10, 10)))
    with pytest.raises(DataError, match="name them alike"):
        file_masks(MasksOptions(path=tmp_path / "images", masks=tmp_path / "masks"), "auto")


def test_images_that_are_left_out_are_said(tmp_path: Path) -> None:
    for name in "abcde":
        save(tmp_path / f"images/{name}.png", np.zeros((9, 9)))
    save(tmp_path / "masks/c.png", np.zeros((9, 9)))
    options = MasksOptions(path=tmp_path / "images", masks=tmp_path / "masks")
    said = "left out: 4 images without a mask (a.png, b.png, d.png, ...)"
    assert file_masks(options, "auto").notes == [said]
    path = write(tmp_path, "image,mask,kind,yes\nc,masks/c.png,x,1\nd,,,\ne,masks/c.png,y,0\n")
    assert file_masks(MasksOptions(path=path), "auto").notes == [
        "left out: 1 images without a mask (d)"
    ]
    for options in ({"label": "kind"}, {"labels": ("yes",)}):
        found = csv_labels(CsvOptions(path=path, **options), "auto")
        assert found.notes == ["left out: 1 images without one of the classes (d)"]


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_name_that_two_files_have_is_refused(tmp_path: Path, folder: str) -> None:
    for place in ("images/a.png", "masks/a.png", f"{folder}/a.jpg"):
        save(tmp_path / place, np.zeros((9, 9)))
    options = MasksOptions(path=tmp_path / "images", masks=tmp_path / "masks")
    message = f"'a.jpg' and 'a.png' in '{tmp_path / folder}' differ by their suffix alone"
    with pytest.raises(DataError, match=re.escape(message)):
        file_masks(options, "auto")


def test_digits_at_the_end_of_a_uid_are_no_suffix(tmp_path: Path) -> None:
    for name in ("1.2.840.1", "1.2.840.2"):
        for folder in ("images", "masks"):
            save(tmp_path / f"{folder}/{name}.png", np.zeros((9, 9)))
            (tmp_path / f"{folder}/{name}.png").rename(tmp_path / folder / name)
    options = MasksOptions(path=tmp_path / "images", masks=tmp_path / "masks")
    found = file_masks(options, "auto")
    assert [path.name for path in found.files] == ["1.2.840.1", "1.2.840.2"]


@pytest.mark.parametrize("name", ["patient", "Patient", "PATIENT_ID", "PatientID", "patient id"])
def test_patients_and_split_are_found_however_they_are_spelled(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f"Image,{name},SPLIT,Kind\na.png,1,train,x\nb.png,1,test,y\n")
    found = csv_labels(CsvOptions(path=path, label="kind"), "auto")
    assert found.groups == ["patient 1", "patient 1"]
    assert found.split == ["train", "test"]
    path = write(tmp_path, f"image,MASK,{name}\na.png,labels.csv,1\n")
    assert file_masks(MasksOptions(path=path), "auto").groups == ["patient 1"]


def test_columns_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "image,patient,Patient,kind\na.png,1,2,x\nb.png,1,2,y\n")
    with pytest.raises(RecipeError, match="several columns 'patient' and 'Patient': rename all"):
        csv_labels(CsvOptions(path=path, label="kind"), "auto")


def test_an_image_is_itself_however_its_path_is_written(tmp_path: Path) -> None:
    paths = ["images/a.png", "./images/a.png", "images//a.png", "images/../images/a.png"]
    paths.append(str(tmp_path / "images/a.png"))
    path = write(tmp_path, "\n".join(["image,yes", *(f"{each},1" for each in paths)]))
    found = csv_labels(CsvOptions(path=path, labels=("yes",)), "auto")
    assert set(found.groups) == {"image images/a.png"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": ("a", "b", "A")}, "target.labels names 'a' twice"),
        ({"label": "kind", "classes": ("x", "y", "x")}, "target.classes names 'x' twice"),
        ({"label": "same"}, "several columns 'same' and 'same'"),
    ],
)
def test_a_class_that_is_named_twice_is_refused(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, "image,a,b,kind,same,same\n1.png,0,1,x,1,1\n2.png,1,0,y,0,0\n")
    with pytest.raises(RecipeError, match=message):
        csv_labels(CsvOptions(path=path, **given), "auto")
