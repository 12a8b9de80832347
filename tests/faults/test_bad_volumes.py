"""Odd and hostile volumes: the right voxels or a reason, and nothing read outside the folder."""

from __future__ import annotations

import gzip
import os
import resource
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from volumes import CANARY, noise, steps, write_series

from dira_core.data.audit import audit
from dira_core.data.folder import FolderSource
from dira_core.data.labelled import mask_pixels
from dira_core.data.readers import read
from dira_core.errors import DataError
from dira_core.source_options import FolderOptions

pytestmark = pytest.mark.faults

VOXELS = noise(10, 12, 14)
UNIT = steps("RAS", (1, 1, 1))


def nifti(voxels: np.ndarray = VOXELS, affine: np.ndarray = UNIT, **fields: Any) -> bytes:
    """Return a NIfTI file with some fields of its header set to anything."""
    data = bytearray(nib.Nifti1Image(voxels, affine).to_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    return bytes(data)


def dim(*sides: int) -> list[int]:
    return [len(sides), *sides, *[1] * (7 - len(sides))]


def flat(affine: np.ndarray) -> bytes:
    """Return a NIfTI file whose sform is damaged."""
    return nifti(srow_x=affine[0], srow_y=affine[1], srow_z=affine[2], sform_code=1)


def with_nan(value: float) -> np.ndarray:
    voxels = VOXELS.astype("f4")
    voxels[3, 4, 5] = value
    return voxels


NIFTI: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "empty file"),
    "a header that is cut": (lambda: nifti()[:200], "damaged"),
    "no voxels": (lambda: nifti()[:352], "more voxels than the file holds"),
    "half of the voxels": (lambda: nifti()[:1500], "more voxels than the file holds"),
    "2^40 voxels": (lambda: nifti(dim=dim(32767, 32767, 1024)), "Mi pixel values"),
    "32767^3": (lambda: nifti(dim=dim(32767, 32767, 32767)), "Mi pixel values"),
    "100 Mi voxels in 4 kB": (lambda: nifti(dim=dim(512, 512, 400)), "far more pixels"),
    "a negative side": (lambda: nifti(dim=dim(-10, 12, 14)), "fewer than three axes"),
    "no side": (lambda: nifti(dim=dim(10, 0, 14)), "fewer than three axes"),
    "two axes": (lambda: nifti(dim=dim(40, 42)), "fewer than three axes"),
    "nine axes": (lambda: nifti(dim=[9] * 8), "number of axes"),
    "one slice": (lambda: nifti(noise(10, 12, 1)), "fewer than 2 slices: 10 x 12 x 1"),
    "a rod": (lambda: nifti(noise(4, 5, 60)), "smaller than 8 px a side"),
    "four axes": (lambda: nifti(noise(10, 12, 14, 2)), "4-D"),
    "five axes": (lambda: nifti(noise(8, 9, 10, 1, 3)), "4-D"),
    "nan": (lambda: nifti(with_nan(np.nan)), "not finite"),
    "infinity": (lambda: nifti(with_nan(-np.inf)), "not finite"),
    "constant": (lambda: nifti(np.ones((10, 12, 14), "i2")), "constant image"),
    "colour": (lambda: nifti(datatype=128, bitpix=24), "several channels or colours"),
    "complex numbers": (lambda: nifti(datatype=32, bitpix=64), "several channels or colours"),
    "an unknown type": (lambda: nifti(datatype=77), "damaged"),
    "an intercept of nan": (lambda: nifti(scl_slope=2, scl_inter=np.nan), "damaged"),
    "voxels far away": (lambda: nifti(vox_offset=1e30), "where its voxels are"),
    "voxels at nan": (lambda: nifti(vox_offset=np.nan), "damaged"),
    "voxels in the header": (lambda: nifti(vox_offset=16), "where its voxels are"),
    "only a header": (lambda: nifti(magic=b"ni1\0"), "only single files"),
    "no spacing": (lambda: flat(np.zeros((3, 4))), "spacing of voxels is 0"),
    "spacing that is nan": (lambda: flat(np.full((3, 4), np.nan)), "spacing of voxels is 0"),
    "axes in one plane": (lambda: flat(UNIT[[0, 0, 1]]), "spacing|span space"),
    "gzip of something else": (lambda: gzip.compress(b"hello" * 99), "holds no NIfTI"),
    "gzip that is cut": (lambda: gzip.compress(nifti())[:-600], "damaged"),
    "gzip with a bit turned": (
        lambda: b"".join(turned(gzip.compress(nifti()), 1500)),
        "damaged",
    ),
    "gzip of nothing": (lambda: gzip.compress(b""), "holds no NIfTI"),
    "gzip without a body": (lambda: b"\x1f\x8b\x08", "damaged"),
}


def turned(data: bytes, place: int) -> tuple[bytes, bytes, bytes]:
    return data[:place], bytes([data[place] ^ 4]), data[place + 1 :]


@pytest.mark.parametrize("case", NIFTI)
def test_a_damaged_nifti_is_refused_with_its_reason(tmp_path: Path, case: str) -> None:
    make, reason = NIFTI[case]
    path = tmp_path / "canary.nii.gz"
    path.write_bytes(make())
    with pytest.raises(DataError, match=reason) as caught:
        read(path, "auto")
    assert "canary" not in str(caught.value)


def mha(data: bytes = VOXELS.tobytes(), **fields: str) -> bytes:
    known = {"NDims": "3", "DimSize": "14 12 10", "ElementType": "MET_SHORT"}
    lines = {"ObjectType": "Image", **known, **fields}
    lines.setdefault("ElementDataFile", "LOCAL")
    return "".join(f"{k} = {v}\n" for k, v in lines.items()).encode() + data


BIG = {"DimSize": "1048576 1024 1024"}
METAIMAGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a header that is cut": (lambda: mha()[:40], "damaged"),
    "a header without end": (lambda: b"ObjectType = Image\n" + b"x" * 10**6, "damaged"),
    "half of the voxels": (lambda: mha()[:1500], "more voxels than the file holds"),
    "2^40 voxels": (lambda: mha(**BIG), "Mi pixel values"),
    "100 Mi voxels": (lambda: mha(DimSize="512 512 400"), "far more pixels"),
    "no sides": (lambda: mha(DimSize=""), "fewer than three axes"),
    "two sides": (lambda: mha(DimSize="14 12", NDims="2"), "fewer than three axes"),
    "other sides than said": (lambda: mha(DimSize="14 12"), "fewer than three axes"),
    "a negative side": (lambda: mha(DimSize="14 -12 10"), "fewer than three axes"),
    "sides that are words": (lambda: mha(DimSize="a b c"), "damaged"),
    "four axes": (lambda: mha(NDims="4", DimSize="14 12 5 2"), "4-D"),
    "no type": (lambda: mha(ElementType="MET_STRANGE"), "type of the voxels"),
    "colour": (lambda: mha(ElementNumberOfChannels="3"), "several channels or colours"),
    "text": (lambda: mha(BinaryData="False"), "written as text"),
    "no spacing": (lambda: mha(ElementSpacing="0 1 1"), "spacing of voxels is 0"),
    "spacing that is nan": (lambda: mha(ElementSpacing="nan 1 1"), "spacing of voxels is 0"),
    "too few numbers": (lambda: mha(ElementSpacing="1 1"), "damaged"),
    "axes in one plane": (lambda: mha(TransformMatrix="1 0 0 1 0 0 0 0 1"), "span space"),
    "compressed nonsense": (lambda: mha(CompressedData="True"), "damaged"),
    "a start behind the end": (lambda: mha(HeaderSize="99999999"), "more voxels than"),
    "a start before the file": (lambda: mha(HeaderSize="-7"), "more voxels than"),
    "compressed and cut": (
        lambda: mha(zlib.compress(VOXELS.tobytes())[:900], CompressedData="True"),
        "more voxels than the file holds",
    ),
}


@pytest.mark.parametrize("case", METAIMAGE)
def test_a_damaged_metaimage_is_refused_with_its_reason(tmp_path: Path, case: str) -> None:
    make, reason = METAIMAGE[case]
    path = tmp_path / "canary.mha"
    path.write_bytes(make())
    with pytest.raises(DataError, match=reason) as caught:
        read(path, "auto")
    assert "canary" not in str(caught.value)


def bomb(inflated: int) -> bytes:
    """Return a small gzip file of a NIfTI that goes on and on."""
    return gzip.compress(nifti()[:352] + bytes(inflated))


def test_a_bomb_is_not_inflated_beyond_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(bomb(2**27))
    huge = tmp_path / "huge.mha"
    packed = zlib.compress(bytes(2**27), 9)
    huge.write_bytes(mha(packed, CompressedData="True", DimSize="2048 2048 32"))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(DataError, match="constant image"):
        read(path, "auto")
    with pytest.raises(DataError, match="far more pixels"):
        read(huge, "auto")
    rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert rise < 100 * 1024
    assert time.process_time() - start < 2


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_a_mask_is_no_bomb_however_well_it_is_compressed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dira_core.data.FREE_BYTES", 0)
    mask = np.zeros((64, 512, 512), "u1")
    mask[30:35, 200:240, 200:240] = 1
    sitk.WriteImage(sitk.GetImageFromArray(mask), str(tmp_path / name), useCompression=True)
    assert (tmp_path / name).stat().st_size < mask.nbytes / 800
    assert mask_pixels(tmp_path / name).sum() == mask.sum()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return a file outside of the folder of volumes that could be taken for voxels."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "secret"
    path.write_bytes(VOXELS.tobytes())
    (tmp_path / "in/link").symlink_to(path)
    (tmp_path / "in/out").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "in/pipe")
    return path


@pytest.mark.parametrize(
    "name",
    [
        "{absolute}",
        "../secret",
        "sub/../../secret",
        "./../secret",
        "..\\secret",
        "link",
        "out/secret",
        "pipe",
        "/dev/zero",
        "/etc/passwd",
        ".",
        "",
        "missing.raw",
        "LIST",
        "LIST 3",
        "a%03d.raw 1 3 1",
        "x\0.raw",
        "~/secret",
        "a" * 5000,
    ],
)
def test_a_metaimage_reads_nothing_outside_its_folder(secret: Path, name: str) -> None:
    folder = secret.parent / "in"
    name = name.format(absolute=secret) if "{" in name else name
    (folder / "a.mhd").write_bytes(mha(b"", ElementDataFile=name))
    with pytest.raises(DataError) as caught:
        read(folder / "a.mhd", "auto")
    assert str(secret.parent) not in str(caught.value)


def test_a_metaimage_reads_what_lies_beside_or_below_it(tmp_path: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/sub/a.raw").write_bytes(VOXELS.tobytes())
    (tmp_path / "in/link.raw").symlink_to("sub/a.raw")
    for name in ("sub/a.raw", "link.raw"):
        (tmp_path / "in/a.mhd").write_bytes(mha(b"", ElementDataFile=name))
        assert read(tmp_path / "in/a.mhd", "auto").pixels.shape == (1, 10, 12, 14)


def places(*heights: float, aside: float = 0.0) -> list[list[float]]:
    return [[1.0, 2.0 + aside * k, z] for k, z in enumerate(heights)]


AXIAL = [1, 0, 0, 0, 1, 0]
SERIES: dict[str, tuple[dict[str, Any], str]] = {
    "a slice is missing": ({"ImagePositionPatient": places(0, 2, 4, 8, 10, 12)}, "unevenly"),
    "a slice is doubled": ({"ImagePositionPatient": places(0, 2, 4, 4, 6, 8)}, "at one place"),
    "all at one place": ({"ImagePositionPatient": places(*[3] * 6)}, "at one place"),
    "another thickness": ({"ImagePositionPatient": places(0, 1, 2, 3, 5, 7)}, "unevenly"),
    "a tilted gantry": (
        {"ImagePositionPatient": places(*range(6), aside=0.27)},
        "tilted gantry",
    ),
    "a localizer": (
        {"ImageOrientationPatient": [AXIAL] * 5 + [[1, 0, 0, 0, 0, -1]]},
        "several orientations",
    ),
    "two series": ({"SeriesInstanceUID": ["1.2"] * 3 + ["1.3"] * 3}, "several series"),
    "two spacings": ({"PixelSpacing": [[1, 1]] * 5 + [[1, 2]]}, "several orientations or sp"),
    "no position": ({"ImagePositionPatient": None}, "without position"),
    "no spacing": ({"PixelSpacing": None}, "without position"),
    "no orientation": ({"ImageOrientationPatient": None}, "without position"),
    "no plane": ({"ImageOrientationPatient": [[1, 0, 0, 1, 0, 0]] * 6}, "not one of a plane"),
    "zeros for a plane": ({"ImageOrientationPatient": [[0] * 6] * 6}, "not one of a plane"),
    "an axis too few": ({"ImagePositionPatient": [[1, 2]] * 6}, "damaged"),
    "colours": (
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0},
        "more pixels than|several channels",
    ),
    "bright and dark": (
        {"PhotometricInterpretation": ["MONOCHROME1"] + ["MONOCHROME2"] * 5},
        "bright where others are dark",
    ),
}


@pytest.mark.parametrize("case", SERIES)
def test_a_series_that_is_no_even_stack_is_refused(tmp_path: Path, case: str) -> None:
    elements, reason = SERIES[case]
    write_series(tmp_path / "s", noise(10, 12, 6), steps("LPS", (1, 1, 1)), **elements)
    with pytest.raises(DataError, match=reason) as caught:
        read(tmp_path / "s", "auto")
    assert CANARY not in str(caught.value)


def test_slices_of_several_sizes_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", noise(10, 12, 6))
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[:-40])
    with pytest.raises(DataError, match="more pixels than the file holds"):
        read(tmp_path / "s", "auto")
    other = write_series(tmp_path / "t", noise(12, 12, 6))
    paths[2].write_bytes(other[2].read_bytes())
    with pytest.raises(DataError, match="several sizes"):
        read(tmp_path / "s", "auto")
    paths[2].write_bytes(whole)
    (tmp_path / "s/notes.txt").write_text("not a slice")
    (tmp_path / "s/DICOMDIR").write_bytes(whole)
    (tmp_path / "s/.0000.dcm").write_bytes(b"a shadow")
    assert read(tmp_path / "s", "auto").pixels.shape == (1, 6, 12, 10)


def test_an_inverted_series_is_turned_bright(tmp_path: Path) -> None:
    voxels = noise(10, 12, 6, dtype="u2")
    write_series(tmp_path / "a", voxels)
    write_series(tmp_path / "b", voxels, PhotometricInterpretation="MONOCHROME1")
    plain, inverted = read(tmp_path / "a", "full"), read(tmp_path / "b", "full")
    total = plain.pixels.astype(np.float64) + inverted.pixels
    assert np.ptp(total) == 0


def test_bad_volumes_among_good_ones_are_all_named(tmp_path: Path) -> None:
    for number, (make, _) in enumerate(NIFTI.values()):
        (tmp_path / f"bad{number:02d}.nii.gz").write_bytes(make())
    for number, (make, _) in enumerate(METAIMAGE.values()):
        (tmp_path / f"bad{number:02d}.mha").write_bytes(make())
    nib.Nifti1Image(VOXELS, UNIT).to_filename(tmp_path / "good.nii")
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(tmp_path / "good.mha"))
    found = audit(FolderSource(FolderOptions(path=tmp_path)))
    assert found.readable == 2
    assert len(found.unreadable) == len(NIFTI) + len(METAIMAGE)


def test_anisotropic_voxels_keep_their_spacing(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(nifti(affine=steps("RAS", (0.5, 0.5, 10))))
    assert read(tmp_path / "a.nii", "auto").spacing == (10.0, 0.5, 0.5)


def test_any_bytes_are_a_volume_or_an_error(tmp_path: Path) -> None:
    """Turn each byte of a header to each of a few values; and random ones of a whole file."""
    generator, path = np.random.default_rng(0), tmp_path / "a.nii"
    good = nifti()
    for place in range(0, 348, 2):
        changed = bytearray(good)
        changed[place] = generator.integers(256)
        path.write_bytes(changed)
        _read_or_refuse(path)
    header = mha()
    for _ in range(150):
        changed = bytearray(header)
        changed[generator.integers(0, 90)] = generator.integers(256)
        path.write_bytes(changed)
        _read_or_refuse(path)


def _read_or_refuse(path: Path) -> None:
    try:
        image = read(path, "auto")
    except DataError:
        return
    assert np.isfinite(image.pixels).all()
    assert image.pixels.ndim in (3, 4)
