"""Targets of volumes read miniatures of the layouts in which their sets are distributed."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from kit import kit

from dira_core import measure_transfer, transfer_plan
from dira_core.errors import DataError
from dira_core.transfer.splits import split
from dira_targets import BratsOptions, CandidatesOptions, Luna16Options
from dira_targets.brats import read as read_brats
from dira_targets.brats import thirds
from dira_targets.candidates import cut_out, thinned
from dira_targets.candidates import read as read_candidates
from dira_targets.lits import read as read_lits
from dira_targets.luna16 import read as read_luna16

SPACING = (0.8, 0.7, 1.5)
"""mm along x, y and z."""


def marked(path: Path, at: tuple[int, int, int], flip: bool = False) -> tuple[float, ...]:
    """Write a volume with one bright voxel at (x, y, z) of the file; return its place in LPS mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(sum(at)).integers(-1000, -800, (20, 32, 30)).astype(np.int16)
    voxels[at[2], at[1], at[0]] = 900
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING)
    image.SetOrigin((-100.0, 50.5, -300.0))
    if flip:
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path))
    return image.TransformIndexToPhysicalPoint(at)  # type: ignore[no-any-return]


@pytest.fixture
def luna(tmp_path: Path) -> Path:
    """Ten scans, one a subset, each with a nodule, bright, and three other candidates."""
    lines = ["seriesuid,coordX,coordY,coordZ,class"]
    for n in range(10):
        at = marked(tmp_path / f"subset{n}/1.3.{n}.mhd", (12 + n, 15, 8 + n // 3), flip=n % 2 == 1)
        others = [np.add(at, shift) for shift in ((9, 0, 0), (0, -9, 0), (-8, 8, 0))]
        for number, place in enumerate([at, *others]):
            lines.append(",".join([f"1.3.{n}", *map(str, place), str(int(number == 0))]))
    lines.append("1.3.99,0,0,0,0")  # a scan that is not there
    (tmp_path / "candidates_V2.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_luna16_cuts_a_box_around_each_candidate_and_splits_by_subset(luna: Path) -> None:
    options = Luna16Options(path=luna, extent=(7.5, 7.2, 7.7), negatives=1.0)
    found = read_luna16(options, (-1000.0, 400.0))
    assert found.notes == [
        "LUNA16: 10 train, 4 validation, 6 test",
        "findings: 10 of 20, in 10 volumes",
        "left out: 20 without a finding (target.negatives)",
    ]
    for index in range(len(found.source)):
        box = found.source.read(index)
        assert box.pixels.shape == (1, 5, 10, 10)
        bright = np.argwhere(box.pixels[0] == 900).tolist()
        middle = [[2, row, column] for row in (4, 5) for column in (4, 5)]
        assert (bright[0] in middle) if found.labels[index, 0] else not bright
    patients = {part: set() for part in ("train", "validation", "test")}
    for part, who in zip(found.split or (), found.patients, strict=True):
        patients[part].add(who)
    assert sum(map(len, patients.values())) == 10


def test_all_candidates_of_a_volume_are_cut_when_it_is_read(
    luna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_luna16(Luna16Options(path=luna, negatives=None), "auto")
    read, reads = type(found.source._volumes).read, []  # type: ignore[attr-defined]

    def counted(self: object, index: int) -> object:
        reads.append(index)
        return read(self, index)

    monkeypatch.setattr(type(found.source._volumes), "read", counted)  # type: ignore[attr-defined]
    for index in np.random.default_rng(0).permutation(len(found.source)):
        found.source.read(int(index))
    assert sorted(reads) == list(range(10))


def test_candidates_of_a_csv_file_are_measured(luna: Path, tmp_path: Path) -> None:
    rows = (luna / "candidates_V2.csv").read_text().splitlines()[1:-1]
    lines = ["image,x,y,z,label,patient"]
    for row in rows:
        series, *cells = row.split(",")
        n = series.split(".")[2]
        lines.append(",".join([f"subset{n}/{series}.mhd", *cells, f"p{n}"]))
    file = luna / "places.csv"
    file.write_text("\n".join(lines) + "\n")
    found = read_candidates(CandidatesOptions(path=file), "auto")
    assert (len(found.source), len(set(found.patients)), found.split) == (40, 10, None)
    parts = split(None, found.patients, found.labels, 1.0, 0)
    sides = [{found.patients[i] for i in part} for part in (parts.fit, parts.test)]
    assert not sides[0] & sides[1]
    given = ["backbone=small-net", "size=[8, 16, 16]", "way=knn", "target.extent=[9, 9, 9]"]
    with kit(tmp_path / "kit"):
        plan = transfer_plan("candidates", str(file), [*given, "window=[-1000, 1000]"])
        done = measure_transfer("random:0", plan, tmp_path / "out").result
    assert done["network"]["dims"] == 3
    assert done["scores"]["plain"]["auc"]["mean"] > 0.6


def test_candidates_that_cannot_be_used_say_why(luna: Path) -> None:
    file = luna / "places.csv"
    file.write_text("image,x,y,z,label\nsubset0/1.3.0.mhd,9999,0,0,1\n")
    found = read_candidates(CandidatesOptions(path=file), "auto")
    with pytest.raises(DataError, match="outside its volume: check the axes"):
        found.source.read(0)
    for cells, message in (("1,2,far,1", "not a number"), ("1,2,3,yes", "takes 0 and 1")):
        file.write_text(f"image,x,y,z,label\na.mhd,{cells}\n")
        with pytest.raises(DataError, match=message):
            read_candidates(CandidatesOptions(path=file), "auto")


def test_a_box_at_the_edge_is_filled_with_the_least_value() -> None:
    pixels = np.arange(1, 28).reshape(1, 3, 3, 3)
    box = cut_out(pixels, np.array([-1, 0, 2]), np.array([2, 2, 2]))
    assert box is not None
    assert box[0, 0].tolist() == [[1, 1], [1, 1]]
    assert box[0, 1].tolist() == [[3, 1], [6, 1]]
    assert cut_out(pixels, np.array([3, 0, 0]), np.array([1, 1, 1])) is None


def test_every_part_keeps_its_positives_and_so_many_others() -> None:
    positive = np.array([True, False, False, False, True, False, False, False])
    parts = ["train"] * 4 + ["test"] * 4
    kept = thinned(positive, parts, 2.0)
    assert len(kept) == 6
    assert {0, 4} <= set(kept.tolist())
    assert set(thinned(positive, parts, 1.0)) < set(kept)


def nifti(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0])), path)  # type: ignore[attr-defined]


def test_lits_pairs_numbers_and_takes_the_tumour_for_liver(tmp_path: Path) -> None:
    for n in (0, 99, 100, 115, 130):
        voxels = np.random.default_rng(n).integers(-200, 200, (16, 14, 12)).astype(np.int16)
        mask = np.zeros(voxels.shape, np.uint8)
        mask[2:5, 3:9, 4:8], mask[3, 4, 5] = 1, 2
        batch, end = ("Training Batch 1", ".nii") if n < 100 else ("Training Batch 2", ".nii.gz")
        nifti(tmp_path / batch / f"volume-{n}{end}", voxels)
        if n != 130:
            nifti(tmp_path / batch / f"segmentation-{n}{end}", mask)
    found = read_lits(tmp_path, "auto")
    assert found.split == ["train", "train", "validation", "test"]
    assert found.notes == [
        "LiTS: 2 train, 1 validation, 1 test",
        "left out: 1 files without their volume or segmentation",
    ]
    masks, known = found.mask(3)
    assert masks.shape == (1, *found.source.read(3).pixels.shape[1:]) == (1, 12, 14, 16)
    assert masks.sum() == 3 * 6 * 4
    assert masks[0, 4:8].sum() == masks.sum()
    assert known.all()
    with pytest.raises(DataError, match=r"no volume-N.nii with segmentation-N.nii"):
        read_lits(tmp_path / "Training Batch 1" / "none", "auto")


def test_brats_takes_one_modality_or_stacks_four(tmp_path: Path) -> None:
    for n in range(6):
        folder = tmp_path / ("HGG" if n % 2 else "LGG") / f"Brats18_{n}_1"
        for number, name in enumerate(("flair", "t1", "t1ce", "t2")):
            voxels = np.random.default_rng(number).integers(0, 100 * (number + 1), (14, 12, 10))
            if (n, name) != (5, "t2"):
                nifti(folder / f"Brats18_{n}_1_{name}.nii.gz", voxels.astype(np.int16))
        mask = np.zeros((14, 12, 10), np.uint8)
        mask[1:3, 2:4, 5], mask[5, 5, 5] = 4, 1
        nifti(folder / f"Brats18_{n}_1_seg.nii.gz", mask)
    found = read_brats(BratsOptions(path=tmp_path), "auto")
    assert sorted(found.split or ()) == ["test"] * 2 + ["train"] * 4
    assert found.mask(0)[0].sum() == 5
    assert found.source.read(0).pixels.shape == (1, 10, 12, 14)
    every = read_brats(BratsOptions(path=tmp_path, modality="all"), "full")
    assert len(every.source) == 5
    assert every.notes[1] == "left out: 1 patients without flair, t1, t1ce, t2"
    stacked = every.source.read(0)
    assert stacked.pixels.shape == (4, 10, 12, 14)
    assert stacked.window == (0.0, 1.0)
    one = read_brats(BratsOptions(path=tmp_path, modality="t2"), "full").source.read(0)
    low, high = one.window
    np.testing.assert_allclose(stacked.pixels[3], (one.pixels[0] - low) / (high - low), atol=1e-6)
    assert sum(part == "test" for part in thirds(285)) == 95
