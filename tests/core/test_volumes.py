"""Volumes: nibabel and SimpleITK see the same voxels, spacing and axes in every format."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom import Dataset, dcmread
from volumes import itk_axes, noise, steps, write_series

from dira_core.data import Decoded
from dira_core.data.audit import audit
from dira_core.data.folder import FolderSource
from dira_core.data.manifest import ManifestSource
from dira_core.data.readers import inspect, read
from dira_core.errors import DataError
from dira_core.source_options import FolderOptions, ManifestOptions

AXES = ["RAS", "LPS", "LAS", "PSR", "SAL", "IRP"]
ITK_TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"]


def seen(path: Path, **options: bool) -> Decoded:
    return inspect(path, "auto", **options)[1]


def check_against_nibabel(path: Path, found: Decoded) -> None:
    expected = nib.as_closest_canonical(nib.load(path))
    values = expected.get_fdata()
    values = values[..., 0] if values.ndim == 4 else values
    assert np.array_equal(found.pixels[0], values.T.astype(np.float32))
    np.testing.assert_allclose(found.spacing, expected.header.get_zooms()[2::-1], rtol=1e-6)


@pytest.mark.parametrize("lean", [0.0, 20.0])
@pytest.mark.parametrize("codes", AXES)
def test_nifti_is_what_nibabel_and_itk_see(tmp_path: Path, codes: str, lean: float) -> None:
    affine = steps(codes, (0.7, 1.5, 3.0), lean)
    nib.Nifti1Image(noise(10, 12, 14), affine).to_filename(tmp_path / "a.nii.gz")
    found = seen(tmp_path / "a.nii.gz")
    check_against_nibabel(tmp_path / "a.nii.gz", found)
    assert found.stored == codes
    voxels, spacing = itk_axes(sitk.ReadImage(str(tmp_path / "a.nii.gz")))
    assert np.array_equal(found.pixels[0], voxels)
    np.testing.assert_allclose(found.spacing, spacing, rtol=1e-5)


@pytest.mark.parametrize("dtype", [">u1", "<u2", ">u2", ">i2", "<i4", "<u4", "<f4", ">f8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_every_type_of_voxel_is_read(tmp_path: Path, dtype: str, kind: type) -> None:
    image = kind(noise(8, 9, 10, dtype=dtype), steps("RAS", (1, 1, 1)))
    if dtype.startswith(">"):
        image = kind(image.dataobj, image.affine, image.header.as_byteswapped(">"))
    image.to_filename(tmp_path / "a.nii")
    found = seen(tmp_path / "a.nii")
    check_against_nibabel(tmp_path / "a.nii", found)
    assert found.pixels.dtype.isnative
    small = np.dtype(dtype).kind == "u" and np.dtype(dtype).itemsize <= 2
    assert found.pixels.dtype == (dtype[1:] if small else np.float32)
    assert found.bits == 8 * np.dtype(dtype).itemsize


def test_stored_numbers_are_scaled(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(8, 9, 10, dtype="u2"), steps("RAS", (1, 1, 1)))
    image.header.set_slope_inter(0.1, -1024)
    image.to_filename(tmp_path / "a.nii")
    check_against_nibabel(tmp_path / "a.nii", seen(tmp_path / "a.nii"))


@pytest.mark.parametrize("unit", ["meter", "mm", "micron", "unknown"])
def test_lengths_are_in_mm_whatever_unit_the_file_has(tmp_path: Path, unit: str) -> None:
    image = nib.Nifti1Image(noise(8, 9, 10), steps("RAS", (1, 2, 3)))
    image.header.set_xyzt_units(unit, "sec")
    image.to_filename(tmp_path / "a.nii")
    found, (_, spacing) = seen(tmp_path / "a.nii"), itk_axes(sitk.ReadImage(tmp_path / "a.nii"))
    np.testing.assert_allclose(found.spacing, spacing, rtol=1e-5)
    assert found.affine is not None
    np.testing.assert_allclose(np.linalg.norm(found.affine[:3, :3], axis=0)[::-1], spacing, 1e-5)


def test_bytes_between_header_and_voxels_are_stepped_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(8, 9, 10), steps("RAS", (1, 1, 1)))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 4000))
    image.to_filename(tmp_path / "a.nii.gz")
    check_against_nibabel(tmp_path / "a.nii.gz", seen(tmp_path / "a.nii.gz"))


def test_a_gzip_file_of_several_members_is_read(tmp_path: Path) -> None:
    """As pigz and bgzip write it."""
    image = nib.Nifti1Image(noise(8, 9, 10), steps("RAS", (1, 1, 1)))
    data = image.to_bytes()
    (tmp_path / "a.nii.gz").write_bytes(
        b"".join(gzip.compress(data[i : i + 500]) for i in range(0, len(data), 500))
    )
    check_against_nibabel(tmp_path / "a.nii.gz", seen(tmp_path / "a.nii.gz"))


def test_the_first_of_several_volumes_is_read_only_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.Nifti1Image(noise(8, 9, 10, 3), steps("LAS", (1, 1, 2))).to_filename(path)
    with pytest.raises(DataError, match=r"data\.first_of_4d=true"):
        read(path, "auto")
    found = seen(path, first_of_4d=True)
    check_against_nibabel(path, found)
    assert found.notes == ("several volumes in one file: the first one is read",)


def test_a_nifti_without_axes_says_so(tmp_path: Path) -> None:
    image = nib.Nifti1Image(noise(8, 9, 10), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    image.to_filename(tmp_path / "a.nii")
    assert seen(tmp_path / "a.nii").notes == ("NIfTI without a frame of axes: taken to be LAS",)


@pytest.mark.parametrize("qfac", [-1, 0, 1])
def test_a_nifti_may_leave_open_which_way_its_third_axis_goes(tmp_path: Path, qfac: int) -> None:
    image = nib.Nifti1Image(noise(8, 9, 10), None)
    image.set_qform(steps("RAS" if qfac >= 0 else "RAI", (1, 2, 3), 20.0), 1)
    data = bytearray(image.to_bytes())
    assert np.frombuffer(data, "<f4", 1, 76) == (qfac or 1)
    data[76:80] = np.float32(qfac).tobytes()
    (tmp_path / "a.nii").write_bytes(data)
    check_against_nibabel(tmp_path / "a.nii", seen(tmp_path / "a.nii"))


def itk_image(dtype: str, codes: str = "RAS", lean: float = 0.0) -> sitk.Image:
    image = sitk.GetImageFromArray(noise(8, 10, 12, dtype=dtype))
    affine = np.diag([-1, -1, 1, 1]) @ steps(codes, (1, 1, 1), lean)
    image.SetDirection(affine[:3, :3].ravel().tolist())
    image.SetSpacing((0.5, 1.5, 2.0))
    image.SetOrigin((3, -4, 5))
    return image


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ITK_TYPES)
def test_metaimage_is_what_itk_wrote(
    tmp_path: Path, dtype: str, compressed: bool, name: str
) -> None:
    image = itk_image(dtype, "PSR")
    sitk.WriteImage(image, str(tmp_path / name), useCompression=compressed)
    voxels, spacing = itk_axes(image)
    found = seen(tmp_path / name)
    assert found.format == "MetaImage"
    assert np.array_equal(found.pixels[0], voxels)
    np.testing.assert_allclose(found.spacing, spacing)


@pytest.mark.parametrize("lean", [0.0, 20.0])
@pytest.mark.parametrize("codes", AXES)
def test_metaimage_lies_as_itk_says(tmp_path: Path, codes: str, lean: float) -> None:
    image = itk_image("i2", codes, lean)
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    voxels, spacing = itk_axes(image)
    found = seen(tmp_path / "a.mha")
    assert np.array_equal(found.pixels[0], voxels)
    np.testing.assert_allclose(found.spacing, spacing)
    assert found.stored == codes


def series_with_itk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize("lean", [0.0, 20.0])
@pytest.mark.parametrize("codes", AXES)
def test_a_series_is_what_itk_sees(tmp_path: Path, codes: str, lean: float) -> None:
    affine = steps(codes, (0.7, 0.8, 2.5), lean)
    if np.linalg.det(affine[:3, :3]) < 0:
        affine[:, 2] *= -1  # a stack has the sense of its rows and columns
    write_series(tmp_path / "s", noise(10, 12, 6), affine, RescaleSlope="2", RescaleIntercept="-3")
    found = seen(tmp_path / "s")
    voxels, spacing = itk_axes(series_with_itk(tmp_path / "s"))
    assert np.array_equal(found.pixels[0], voxels)
    np.testing.assert_allclose(found.spacing, spacing, rtol=1e-5)
    expected = nib.as_closest_canonical(nib.Nifti1Image(noise(10, 12, 6) * 2 - 3, affine))
    assert np.array_equal(found.pixels[0], expected.get_fdata().T)


def test_a_file_of_frames_is_a_series_too(tmp_path: Path) -> None:
    """Enhanced CT: position and spacing are in the functional groups of each frame."""
    voxels = noise(10, 12, 6)
    slices = [dcmread(path) for path in write_series(tmp_path / "s", voxels)]
    (tmp_path / "e").mkdir()
    frames = slices[0]
    frames.NumberOfFrames = len(slices)
    frames.PixelData = b"".join(one.PixelData for one in slices)
    groups = []
    for one in slices:
        group, place, plane, measures = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = one.ImagePositionPatient
        plane.ImageOrientationPatient = one.ImageOrientationPatient
        measures.PixelSpacing = one.PixelSpacing
        group.PlanePositionSequence, group.PlaneOrientationSequence = [place], [plane]
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    frames.PerFrameFunctionalGroupsSequence = groups
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(frames, name)
    frames.save_as(tmp_path / "e/one.dcm")
    one, many = seen(tmp_path / "e"), seen(tmp_path / "s")
    assert np.array_equal(one.pixels, many.pixels)
    assert one.spacing == many.spacing


def test_resampling_keeps_what_is_covered_and_means(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    nib.Nifti1Image(noise(20, 24, 16, dtype="f4"), steps("RAS", (1, 1, 2))).to_filename(path)
    image = read(path, "auto", (4.0, 2.0, 2.0))
    assert image.pixels.shape == (1, 8, 12, 10)
    assert image.spacing == (4.0, 2.0, 2.0)
    assert image.pixels.mean() == pytest.approx(read(path, "auto").pixels.mean(), abs=3)
    finer = read(path, "auto", (1.0, 1.0, 1.0))
    assert finer.pixels.shape == (1, 32, 24, 20)
    kept = read(path, "auto", (2.0, 1.0, 1.0))
    assert np.array_equal(kept.pixels, read(path, "auto").pixels)


def test_resampling_to_nearly_nothing_or_of_a_flat_image_is_refused(tmp_path: Path) -> None:
    nib.Nifti1Image(noise(20, 24, 16), steps("RAS", (1, 1, 2))).to_filename(tmp_path / "a.nii")
    with pytest.raises(DataError, match="smaller than 8 px"):
        read(tmp_path / "a.nii", "auto", (30.0, 10.0, 10.0))
    with pytest.raises(DataError, match="too many voxels"):
        read(tmp_path / "a.nii", "auto", (0.01, 0.01, 0.01))
    write_series(tmp_path / "s", noise(10, 12, 2))
    with pytest.raises(DataError, match="for volumes"):
        read(tmp_path / "s/0000.dcm", "auto", (1.0, 1.0, 1.0))


def test_the_window_is_given_or_percentiles_of_the_volume(tmp_path: Path) -> None:
    voxels = noise(20, 20, 20, dtype="f4")
    nib.Nifti1Image(voxels, steps("RAS", (1, 1, 1))).to_filename(tmp_path / "a.nii")
    assert read(tmp_path / "a.nii", (-100.0, 50.0)).window == (-100, 50)
    expected = np.percentile(voxels, (0.5, 99.5))
    np.testing.assert_allclose(read(tmp_path / "a.nii", "auto").window, expected)


@pytest.mark.parametrize("name", ["a.nii", "a.mha"])
def test_unsigned_volumes_have_the_full_range_of_their_bits(tmp_path: Path, name: str) -> None:
    for dtype in ("u1", "u2", "i2"):
        voxels = noise(9, 9, 9, dtype=dtype) // 4 + 10
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / name))
        held = (voxels.min(), voxels.max())
        whole = (0, np.iinfo(dtype).max) if dtype[0] == "u" else held
        assert read(tmp_path / name, "full").window == whole
        auto = np.percentile(voxels, (0.5, 99.5))
        assert read(tmp_path / name, "auto").window == (whole if dtype == "u1" else tuple(auto))


def test_a_metaimage_header_is_known_by_the_voxels_it_names(tmp_path: Path) -> None:
    for folder, name, seed in (("a", "ct", 1), ("b", "ct", 2), ("c", "copy", 1)):
        (tmp_path / folder).mkdir()
        voxels = sitk.GetImageFromArray(noise(9, 10, 11, seed=seed))
        sitk.WriteImage(voxels, str(tmp_path / folder / f"{name}.mhd"))
    source = FolderSource(FolderOptions(path=tmp_path))
    one, other, copy = (source.digest(index) for index in range(3))
    assert one == copy != other
    assert source.path(0).read_bytes() == source.path(1).read_bytes()
    source.fingerprint()
    (tmp_path / "b/ct.raw").write_bytes(bytes(99))
    assert FolderSource(source.options).fingerprint() != source.fingerprint()
    (tmp_path / "b/ct.raw").unlink()
    assert source.digest(1) is None
    assert FolderSource(source.options).fingerprint() != source.fingerprint()


def test_folders_and_manifests_hold_volumes_and_series(tmp_path: Path) -> None:
    write_series(tmp_path / "ct/one", noise(10, 12, 4))
    write_series(tmp_path / "ct/two", noise(10, 12, 5))
    nib.Nifti1Image(noise(8, 9, 10), steps("RAS", (1, 1, 1))).to_filename(tmp_path / "ct/a.nii.gz")
    flat = FolderSource(FolderOptions(path=tmp_path / "ct"))
    assert len(flat) == 10
    source = FolderSource(FolderOptions(path=tmp_path / "ct", series=True))
    assert [source.name(i) for i in range(len(source))] == ["a.nii.gz", "one/", "two/"]
    assert [source.read(i).pixels.shape[1] for i in range(3)] == [10, 4, 5]
    (tmp_path / "list.csv").write_text("image,split\nct/one,train\nct/a.nii.gz,train\n")
    listed = ManifestSource(ManifestOptions(path=tmp_path / "list.csv", spacing=(2.5, 0.8, 0.7)))
    assert listed.read(0).pixels.shape == (1, 4, 12, 10)
    single = FolderSource(FolderOptions(path=tmp_path / "ct/one", series=True))
    assert single.read(0).pixels.shape == (1, 4, 12, 10)
    found = audit(source)
    assert (found.readable, found.stored) == (3, {"LPS": 2, "RAS": 1})
    before = source.fingerprint()
    next((tmp_path / "ct/two").iterdir()).write_bytes(b"changed")
    assert FolderSource(source.options).fingerprint() != before


def by_uid(folder: Path) -> list[tuple[np.ndarray, tuple[float, ...]]]:
    """Return what ITK makes of each series in a flat folder that has several slices."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames
    reader, found = sitk.ImageSeriesReader(), {}
    for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        files = names(str(folder), uid)
        if len(files) > 1:
            reader.SetFileNames(files)
            found[min(files)] = itk_axes(reader.Execute())
    return [found[first] for first in sorted(found)]


def test_series_in_one_flat_folder_are_volumes_of_their_own(tmp_path: Path) -> None:
    flat = tmp_path / "ct/flat"
    for number, (depth, spacing) in enumerate([(4, 2.5), (6, 1.0), (1, 5.0)]):
        affine = steps("LPS", (0.7, 0.8, spacing))
        voxels = noise(10 + number, 12, depth, seed=number)
        made = write_series(tmp_path / "s", voxels, affine, SeriesInstanceUID=f"1.2.{number}")
        flat.mkdir(parents=True, exist_ok=True)
        for path in made:  # names of the series alternate
            path.rename(flat / f"{path.stem}-{number}.dcm")
    write_series(tmp_path / "ct/alone", noise(8, 9, 5))
    source = FolderSource(FolderOptions(path=tmp_path / "ct", series="split"))
    assert [source.name(i) for i in range(3)] == [
        "alone/0000.dcm",
        "flat/0000-0.dcm",
        "flat/0000-1.dcm",
    ]
    assert len(source) == 3
    assert source.ignored == {"series of one slice": 1}
    assert source.read(0).pixels.shape == (1, 5, 9, 8)
    for index, (voxels, spacing) in enumerate(by_uid(flat), 1):
        found = source.read(index)
        assert np.array_equal(found.pixels[0], voxels)
        np.testing.assert_allclose(found.spacing, spacing, rtol=1e-5)
    assert audit(source, workers=0).readable == 3
    with pytest.raises(DataError, match=r"several series: .* data.series=split"):
        read(flat, "auto")
    before = source.fingerprint()
    (flat / "0002-1.dcm").write_bytes(b"changed")  # not the file that names the series
    changed = FolderSource(source.options)
    assert changed.fingerprint() != before
    with pytest.raises(DataError, match="unevenly spaced|several places|missing"):
        changed.read(2)


@pytest.mark.parametrize("name", ["ct_aorta_1.5mm", "mr_t2_spine", "mr_t2s_spine"])
def test_real_nifti_is_what_nibabel_and_itk_see(real_data: Path, name: str) -> None:
    path = real_data / f"volumes/various/{name}.nii.gz"
    found = seen(path)
    check_against_nibabel(path, found)
    voxels, spacing = itk_axes(sitk.ReadImage(str(path)))
    assert np.array_equal(found.pixels[0].astype(np.float32), voxels)
    np.testing.assert_allclose(found.spacing, spacing, rtol=1e-5)


def test_real_series_are_what_itk_sees(real_data: Path) -> None:
    folders = sorted(path for path in (real_data / "dicom_series").iterdir() if path.is_dir())
    assert len(folders) == 3
    for folder in folders:
        found = seen(folder)
        voxels, spacing = itk_axes(series_with_itk(folder))
        assert np.array_equal(found.pixels[0].astype(np.float32), voxels)
        np.testing.assert_allclose(found.spacing, spacing, rtol=1e-5)


def test_real_series_of_one_flat_folder_are_what_itk_sees(real_data: Path, tmp_path: Path) -> None:
    folders = sorted(path for path in (real_data / "dicom_series").iterdir() if path.is_dir())
    for number, folder in enumerate(folders):
        for path in folder.glob("*.dcm"):
            (tmp_path / f"{path.stem}-{number}.dcm").symlink_to(path)
    source = FolderSource(FolderOptions(path=tmp_path, series="split"))
    expected = by_uid(tmp_path)
    assert len(source) == len(expected) == 3
    for index, (voxels, spacing) in enumerate(expected):
        found = source.read(index)
        assert np.array_equal(found.pixels[0].astype(np.float32), voxels)
        np.testing.assert_allclose(found.spacing, spacing, rtol=1e-5)
