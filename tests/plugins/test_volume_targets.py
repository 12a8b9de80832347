"""Targets of volumes read miniatures of the layouts in which their sets are distributed."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from kit import kit
from volumes import noise, write_series

from dira_core import measure_transfer, transfer_plan
from dira_core.errors import DataError
from dira_core.testing import check
from dira_core.transfer.splits import split
from dira_targets.brats import read as read_brats
from dira_targets.brats import thirds
from dira_targets.candidates import cut_out, thinned
from dira_targets.candidates import read as read_candidates
from dira_targets.lidc import Plane, drawn_reading
from dira_targets.lidc import read as read_lidc
from dira_targets.lits import read as read_lits
from dira_targets.luna16 import read as read_luna16
from dira_targets.options import (
    BratsOptions,
    CandidatesOptions,
    LidcOptions,
    LitsOptions,
    Luna16Options,
)
from dira_targets.readings import Outline, filled

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
    assert [wrong for _, wrong in check("target", "luna16", path=luna)] == [None, None]
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


def test_boxes_that_are_never_asked_for_do_not_pile_up(
    luna: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_luna16(Luna16Options(path=luna, negatives=None), "auto")
    boxes = [found.source.read(index).pixels for index in range(40)]
    monkeypatch.setattr("dira_targets.candidates.HELD", 5 * boxes[0].nbytes)
    gc.collect()
    tracemalloc.start()
    for index in range(0, 40, 4):  # one of the four of each volume
        assert np.array_equal(found.source.read(index).pixels, boxes[index])
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 10 * boxes[0].nbytes
    for index in range(40):
        assert np.array_equal(found.source.read(index).pixels, boxes[index])


def test_candidates_of_a_csv_file_are_measured(luna: Path, tmp_path: Path) -> None:
    rows = (luna / "candidates_V2.csv").read_text().splitlines()[1:-1]
    lines = ["image,x,y,z,label,patient"]
    for row in rows:
        series, *cells = row.split(",")
        n = series.split(".")[2]
        lines.append(",".join([f"subset{n}/{series}.mhd", *cells, f"p{n}"]))
    file = luna / "places.csv"
    file.write_text("\n".join(lines) + "\n")
    assert [wrong for _, wrong in check("target", "candidates", path=file)] == [None, None]
    found = read_candidates(CandidatesOptions(path=file), "auto")
    assert (len(found.source), len(set(found.patients)), found.split) == (40, 10, None)
    parts = split(None, found.patients, found.labels, 1.0, 0, 0)
    sides = [{found.patients[i] for i in part} for part in (parts.fit, parts.test)]
    assert not sides[0] & sides[1]
    given = ["backbone=small-net", "size=[8, 16, 16]", "way=knn", "target.extent=[9, 9, 9]"]
    with kit(tmp_path / "kit"):
        plan = transfer_plan("candidates", str(file), [*given, "window=[-1000, 1000]"])
        done = measure_transfer("random:0", plan, tmp_path / "out").result
    assert done["network"]["dims"] == 3
    assert done["scores"]["plain"]["auc"]["mean"] > 0.6


def test_candidates_of_one_volume_stay_together_however_they_are_listed(luna: Path) -> None:
    file = luna / "places.csv"
    file.write_text("image,x,y,z,label\nsubset0/a.mhd,1,2,3,1\n./subset0/a.mhd,1,2,3,0\n")
    found = read_candidates(CandidatesOptions(path=file), "auto")
    assert found.patients == ["subset0/a.mhd"] * 2
    file.write_text("Image,X,Y,Z,Label,Patient\na.mhd,1,2,3,1,p\nb.mhd,1,2,3,0,p\n")
    assert read_candidates(CandidatesOptions(path=file), "auto").patients == ["p", "p"]


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


def roi(z: float, points: list[tuple[int, int]]) -> str:
    edges = "".join(
        f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points
    )
    about = f"<imageZposition>{z}</imageZposition><inclusion>TRUE</inclusion>"
    return f"<roi>{about}{edges}</roi>"


def rectangle(x: int, y: int, w: int, h: int) -> list[tuple[int, int]]:
    """Return corners of the first pixels outside a rectangle whose first pixel is x, y."""
    return [(x - 1, y - 1), (x + w, y - 1), (x + w, y + h), (x - 1, y + h)]


@pytest.fixture(params=[1.0, -1.0], ids=["supine", "prone"])
def lidc(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Two scans: a nodule of three readers in each, a point, and a nodule of one reader."""
    for n in (7, 700):
        voxels = noise(40, 36, 14, seed=n)
        voxels[20:26, 11:16, 5:8] = 1000
        affine = np.diag([-0.7 * request.param, -0.8 * request.param, 2.5, 1.0])
        affine[:3, 3] = [10, 20, -100]
        folder = tmp_path / f"LIDC-IDRI-{n:04}/1.2/1.3"
        write_series(folder, voxels, affine, SeriesInstanceUID=f"1.2.{n}")
        z = [-100 + 2.5 * k for k in range(14)]
        exact = "".join(roi(z[k], rectangle(20, 11, 6, 5)) for k in (5, 6, 7))
        small = "".join(roi(z[k], rectangle(21, 12, 4, 3)) for k in (6, 7))
        other = roi(z[2], rectangle(3, 3, 4, 4))
        nodules = [[exact, other], [exact, roi(z[9], [(30, 30)])], [small], []]
        sessions = "".join(
            "<readingSession>"
            + "".join(f"<unblindedReadNodule>{each}</unblindedReadNodule>" for each in session)
            + "</readingSession>"
            for session in nodules
        )
        about = f"<ResponseHeader><SeriesInstanceUid>1.2.{n}</SeriesInstanceUid></ResponseHeader>"
        text = f'<LidcReadMessage xmlns="http://www.nih.gov">{about}{sessions}</LidcReadMessage>'
        (folder / "069.xml").write_text(f'<?xml version="1.0" encoding="UTF-8"?>{text}')
    return tmp_path


def test_lidc_draws_what_half_of_the_readers_outlined(lidc: Path) -> None:
    assert [wrong for _, wrong in check("target", "lidc-idri", path=lidc)] == [None, None]
    options = LidcOptions(path=lidc, readers=2, extent=(20.0, 14.0, 14.4))
    found = read_lidc(options, (-1000.0, 1000.0))
    assert found.split == ["train", "test"]
    assert found.patients == ["7", "700"]
    assert found.notes == ["LIDC-IDRI nodules: 1 train, 1 test", "in 2 series"]
    for index in range(2):
        masks, known = found.mask(index)
        box = found.source.read(index)
        assert masks.shape == box.pixels.shape
        assert np.array_equal(masks, box.pixels == 1000)
        assert masks.sum() == 6 * 5 * 3
        assert known.all()
    every = read_lidc(LidcOptions(path=lidc), "auto")
    assert len(every.source) == 4


def test_lidc_takes_holes_out_and_says_what_it_cannot_read(lidc: Path) -> None:
    line = np.array(rectangle(2, 2, 6, 6))
    assert filled(line, (12, 12)).sum() == 36
    ring = [Outline(0.0, line, True), Outline(0.0, np.array(rectangle(4, 4, 2, 2)), False)]
    plane = Plane(np.zeros(2), np.ones(2))
    drawn = drawn_reading(ring, plane, np.diag([-1.0, -1, 1, 1]), (1, 12, 12))
    assert drawn.sum() == 36 - 4
    with pytest.raises(DataError, match="no nodule of 4 or more readers"):
        read_lidc(LidcOptions(path=lidc, readers=4), "auto")
    (lidc / "LIDC-IDRI-0007/1.2/1.3/069.xml").write_text("<a>")
    with pytest.raises(DataError, match=r"069.xml is no reading of LIDC-IDRI"):
        read_lidc(LidcOptions(path=lidc), "auto")


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
    assert [wrong for _, wrong in check("target", "lits", path=tmp_path)] == [None, None]
    found = read_lits(LitsOptions(path=tmp_path), "auto")
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
        read_lits(LitsOptions(path=tmp_path / "Training Batch 1" / "none"), "auto")


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
    assert [wrong for _, wrong in check("target", "brats", path=tmp_path)] == [None, None]
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
