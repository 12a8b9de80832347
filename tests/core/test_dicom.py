"""DICOM: pixels agree with pydicom's own functions and with a table of real, odd files."""

from __future__ import annotations

import csv
import hashlib
import logging
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.dataset import FileMetaDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing
from pydicom.pixels.utils import pixel_array

from dira_core.data import dicom
from dira_core.data.readers import inspect, quiet, read
from dira_core.errors import DataError
from dira_core.types import Image

PIXELS = np.random.default_rng(5).integers(0, 4096, (40, 48)).astype(np.uint16)


def header(pixels: np.ndarray, bits: int = 12, **elements: object) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2] if pixels.ndim == 2 else pixels.shape[1:3]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored = 8 * pixels.itemsize, bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def written(path: Path, dataset: Dataset) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def shown(image: Image) -> np.ndarray:
    low, high = image.window
    return np.clip((image.pixels[0].astype(np.float64) - low) / (high - low), 0, 1)


def lut(first: int, table: np.ndarray, bits: int = 16) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table), first, bits])
    item.add_new("LUTData", "US", table.tolist())
    return item


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_first_window_shows_what_pydicom_shows(
    tmp_path: Path, function: str, kind: str
) -> None:
    dataset = header(
        PIXELS,
        PhotometricInterpretation=kind,
        WindowCenter=[700, 1],
        WindowWidth=[900.5, 1],
        VOILUTFunction=function,
        RescaleSlope="0.5",
        RescaleIntercept="-100",
    )
    values = apply_windowing(apply_modality_lut(PIXELS, dataset), dataset)
    low, high = -100, 4095 * 0.5 - 100
    expected = (values - low) / (high - low)
    expected = 1 - expected if kind == "MONOCHROME1" else expected
    assert np.allclose(shown(read(written(tmp_path / "a", dataset), "auto")), expected, atol=1e-6)


def test_a_window_given_by_the_user_is_in_modality_units(tmp_path: Path) -> None:
    dataset = header(PIXELS, RescaleSlope="1", RescaleIntercept="-1024", WindowCenter=1)
    dataset.WindowWidth = 2
    image = read(written(tmp_path / "a.dcm", dataset), (-1000, 400))
    assert image.window == (-1000, 400)
    assert np.array_equal(image.pixels[0], PIXELS.astype(np.float32) - 1024)
    assert read(tmp_path / "a.dcm", "full").window == (-1024, 4095 - 1024)


def test_signed_values_and_unused_bits_are_read_right(tmp_path: Path) -> None:
    signed = PIXELS.astype(np.int16) - 2048
    image = read(written(tmp_path / "a.dcm", header(signed)), "full")
    assert np.array_equal(image.pixels[0], signed)
    assert image.window == (-2048, 2047)
    dirty = header(PIXELS | 0xF000)
    assert np.array_equal(read(written(tmp_path / "b.dcm", dirty), "full").pixels[0], PIXELS)


def test_look_up_tables_agree_with_pydicom(tmp_path: Path) -> None:
    rising = np.sqrt(np.arange(4000)).astype(np.uint16) * 900
    dataset = header(PIXELS, VOILUTSequence=[lut(50, rising)])
    image = read(written(tmp_path / "voi.dcm", dataset), "auto")
    assert np.array_equal(image.pixels[0], apply_voi(PIXELS, dataset))
    assert image.window == (rising.min(), rising.max())
    assert np.array_equal(read(tmp_path / "voi.dcm", "full").pixels[0], PIXELS)
    dataset = header(PIXELS, ModalityLUTSequence=[lut(50, rising)])
    image = read(written(tmp_path / "modality.dcm", dataset), "full")
    assert np.array_equal(image.pixels[0], apply_modality_lut(PIXELS, dataset))


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_move_the_window(tmp_path: Path, kind: str) -> None:
    padded = PIXELS.astype(np.int16)
    padded[:20] = -2000
    dataset = header(padded, 16, PixelPaddingValue=-2000, PhotometricInterpretation=kind)
    image = read(written(tmp_path / "a.dcm", dataset), "auto")
    assert (shown(image)[:20] == 0).all()
    edges = np.percentile(PIXELS[20:], [0.5, 99.5])
    expected = tuple(edges) if kind == "MONOCHROME2" else tuple(-1 - edges[::-1])
    assert image.window == pytest.approx(expected)


def test_the_middle_frame_is_read_with_its_own_rescale_window_and_spacing(tmp_path: Path) -> None:
    frames = np.stack([PIXELS, PIXELS[::-1], PIXELS // 2])
    groups = []
    for frame in range(3):
        rescale, window, measures, group = Dataset(), Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = frame + 1, -frame
        window.WindowCenter, window.WindowWidth = 100 * (frame + 1), 51
        measures.PixelSpacing = [0.5, 0.25 * (frame + 1)]
        group.PixelValueTransformationSequence = [rescale]
        group.FrameVOILUTSequence = [window]
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    dataset = header(frames, NumberOfFrames=3, PerFrameFunctionalGroupsSequence=groups)
    image, decoded = inspect(written(tmp_path / "a.dcm", dataset), "auto")
    assert np.array_equal(image.pixels[0], PIXELS[::-1].astype(np.float32) * 2 - 1)
    assert image.window == (199.5 - 25, 199.5 + 25)
    assert image.spacing == (0.5, 0.5)
    assert decoded.notes == ("several frames: the middle one is read",)


def test_dicom_without_preamble_or_transfer_syntax_is_read_if_the_length_fits(
    tmp_path: Path,
) -> None:
    dataset = header(PIXELS, ImageType=["ORIGINAL"])
    data = written(tmp_path / "a.dcm", dataset).read_bytes()
    bare = data[144 + int.from_bytes(data[140:144], "little") :]
    (tmp_path / "bare").write_bytes(bare)
    assert np.array_equal(read(tmp_path / "bare", "full").pixels[0], PIXELS)
    (tmp_path / "short").write_bytes(bare[:-4])
    with pytest.raises(DataError):
        read(tmp_path / "short", "full")


def deflated(dataset: Dataset, path: Path, payload: bytes = b"") -> Path:
    """Write a data set deflated, with `payload` as a private element before the pixels."""
    if payload:
        dataset.add_new(0x00090010, "LO", "X")
        dataset.add_new(0x00091001, "OB", payload)
    data = bytearray(written(path, dataset).read_bytes())
    start = 144 + int.from_bytes(data[140:144], "little")
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    body = deflater.compress(bytes(data[start:])) + deflater.flush()
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    meta = written(path, dataset).read_bytes()
    path.write_bytes(meta[: 144 + int.from_bytes(meta[140:144], "little")] + body)
    return path


def test_deflated_files_are_read_and_bombs_are_not_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom, "MAX_INFLATED", 2**20)
    path = deflated(header(PIXELS), tmp_path / "a.dcm")
    assert np.array_equal(read(path, "full").pixels[0], PIXELS)
    bomb = deflated(header(PIXELS), tmp_path / "bomb.dcm", bytes(dicom.MAX_INFLATED))
    assert bomb.stat().st_size < 2**16
    with pytest.raises(DataError, match="deflated data of more than 1 MiB"):
        read(bomb, "full")


def test_declared_sizes_are_checked_before_anything_is_decoded(tmp_path: Path) -> None:
    for rows, frames in ((65535, 1), (40, 10**6), (0, 1)):
        dataset = header(PIXELS, Rows=rows, NumberOfFrames=frames)
        with pytest.raises(DataError, match="header declares"):
            read(written(tmp_path / "a.dcm", dataset), "auto")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    start = written(tmp_path / "a.dcm", header(PIXELS)).read_bytes()[:-8]
    undefined = b"\xff\xff\xff\xff"
    nested = b"\x40\x00\x75\x02SQ\0\0" + undefined + b"\xfe\xff\x00\xe0" + undefined
    meta = 144 + int.from_bytes(start[140:144], "little")
    (tmp_path / "b.dcm").write_bytes(start[:meta] + nested * 3000)
    with pytest.raises(DataError):
        read(tmp_path / "b.dcm", "auto")


@pytest.mark.parametrize("canary", ["CANARY^JANE", "19990230"])
def test_no_value_of_the_header_reaches_a_message_a_log_or_a_warning(
    tmp_path: Path, canary: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = header(PIXELS, PatientName=canary, PatientBirthDate="19700101")
    data = written(tmp_path / "a.dcm", dataset).read_bytes()
    data = data.replace(b"19700101", canary.encode()[:8].ljust(8))
    messages = []
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        for length in range(100, len(data), 97):
            (tmp_path / "a.dcm").write_bytes(data[:length])
            with pytest.raises(DataError) as error:
                read(tmp_path / "a.dcm", "auto")
            messages.append(str(error.value))
    printed = capfd.readouterr()
    assert not caught
    assert canary not in " ".join([*messages, caplog.text, printed.out, printed.err])


def test_a_damaged_rescale_is_an_error_and_a_missing_one_is_not(tmp_path: Path) -> None:
    path = written(tmp_path / "a.dcm", header(PIXELS, RescaleSlope="1.25", RescaleIntercept="0"))
    path.write_bytes(path.read_bytes().replace(b"1.25", b"x.25"))
    with pytest.raises(DataError, match="RescaleSlope"):
        read(path, "auto")


def test_odd_real_files_decode_to_the_known_pixels_or_say_why(
    real_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = real_data / "dicom_odd"
    with (folder / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    reasons, known = {}, 0
    for row in rows:
        path = folder / row["file"]
        try:
            image = read(path, "auto")
        except DataError as error:
            reasons[row["file"]] = str(error)
        else:
            assert row["decodes"] == "1", row["file"]
            assert shown(image).max() > shown(image).min()
            known += _same_pixels(path, row)
    refused = {row["file"] for row in rows if row["decodes"] == "0"}
    assert refused <= set(reasons)
    for name in set(reasons) - refused:
        assert "pip install" in reasons[name], name
    assert known >= 35
    assert capfd.readouterr() == ("", "")


def _same_pixels(path: Path, row: dict[str, str]) -> bool:
    """Compare every frame, before any table, with the digest of the known pixels."""
    with quiet(), path.open("rb") as file:
        dataset = dicom.parse(file)
        _, count = dicom.describe(dataset)
        frames = [dicom.stored_pixels(dataset, frame) for frame in range(count)]
    pixels = np.stack(frames) if count > 1 else frames[0]
    assert "x".join(map(str, pixels.shape)) == row["shape"], row["file"]
    little = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
    lossy = dataset.file_meta.TransferSyntaxUID == uid.JPEGBaseline8Bit
    if lossy:  # libraries round differently
        assert abs(int(pixels.max()) - int(row["max"])) <= 2, row["file"]
    else:
        assert hashlib.sha256(little.tobytes()).hexdigest() == row["pixel_sha256"], row["file"]
    return True


def test_tables_of_real_files_agree_with_pydicom(real_data: Path) -> None:
    for name, apply in (("mlut_18.dcm", apply_modality_lut), ("vlut_04.dcm", apply_voi)):
        path = real_data / "dicom_odd" / name
        dataset = dcmread(path)
        expected = apply(pixel_array(dataset), dataset)
        assert np.array_equal(read(path, "auto").pixels[0], expected), name


def test_monochrome1_is_the_negative_of_the_same_monochrome2(real_data: Path) -> None:
    folder = real_data / "dicom_odd"
    (siim,) = folder.glob("cxr_siim*")
    dark = shown(read(folder / "cxr_MONOCHROME1.dcm", "auto"))
    assert np.allclose(dark, 1 - shown(read(siim, "auto")))


def test_a_codestream_of_another_size_than_the_header_is_refused(
    real_data: Path, tmp_path: Path
) -> None:
    dataset = dcmread(real_data / "dicom_odd" / "made_cxr_12bit_j2k_lossless.dcm")
    dataset.Rows = 256
    with pytest.raises(DataError, match="another size"):
        read(written(tmp_path / "a.dcm", dataset), "auto")


def test_a_missing_codec_is_named(real_data: Path) -> None:
    needs = {
        "JPEG-LL.dcm": (uid.JPEGLosslessSV1, "python-gdcm"),
        "MR_small_jpeg_ls_lossless.dcm": (uid.JPEGLSLossless, "pyjpegls"),
        "JPGExtended.dcm": (uid.JPEGExtended12Bit, "pylibjpeg-libjpeg"),
    }
    for name, (syntax, package) in needs.items():
        if set(get_decoder(syntax).available_plugins) - {"pillow"}:
            continue  # installed here
        with pytest.raises(DataError, match=f"pip install {package}"):
            read(real_data / "dicom_odd" / name, "auto")
