"""Bad files among good ones: each is named with its reason, and nothing of a header gets out."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset

from dira_core.data.audit import audit
from dira_core.data.folder import FolderSource
from dira_core.data.readers import read
from dira_core.errors import DataError
from dira_core.source_options import FolderOptions

pytestmark = pytest.mark.faults

PIXELS = np.random.default_rng(2).integers(0, 255, (64, 64), np.uint8)
CANARY = "CANARY^JANE"


def encoded(kind: str, pixels: np.ndarray = PIXELS, **options: str) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def dicom(syntax: str = uid.ExplicitVRLittleEndian, **elements: object) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.PatientName, dataset.PatientID = CANARY, "CANARY-MRN"
    dataset.Rows, dataset.Columns = PIXELS.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = PIXELS.tobytes()
    dataset["PixelData"].VR = "OB"
    for name, value in elements.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def png_that_declares(width: int, height: int, rows: int) -> bytes:
    """Return a PNG of some black rows, a few hundred kilobytes whatever its size."""
    deflater = zlib.compressobj(9)
    row = bytes(1 + width)
    data = b"".join(deflater.compress(row) for _ in range(rows)) + deflater.flush()
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", data)]
    png = b"\x89PNG\r\n\x1a\n"
    for name, body in [*parts, (b"IEND", b"")]:
        png += (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )
    return png


def deflate_bomb() -> bytes:
    plain = dicom()
    body = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    start = 144 + int.from_bytes(plain[140:144], "little")
    private = b"\x09\0\x01\x10OB\0\0" + struct.pack("<I", 2**29)
    squeezed = body.compress(plain[start:-4108] + private)
    squeezed += b"".join(body.compress(bytes(2**22)) for _ in range(128)) + body.flush()
    meta = dicom(uid.DeflatedExplicitVRLittleEndian)
    return meta[: 144 + int.from_bytes(meta[140:144], "little")] + squeezed


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", encoded("PNG"))
    return buffer.getvalue()


def bad_files() -> Iterator[tuple[str, bytes, str]]:
    """Yield name, content and a piece of the reason."""
    for kind, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("TIFF", "tif")):
        good = encoded(kind)
        for part in (1, 5, 10, 25, 50, 75, 95):
            yield f"cut{part}.{suffix}", good[: max(1, len(good) * part // 100)], ""
        yield f"empty.{suffix}", b"", "empty file"
        yield f"constant.{suffix}", encoded(kind, np.full((64, 64), 9, np.uint8)), "constant"
        yield f"tiny.{suffix}", encoded(kind, PIXELS[:4, :4]), "smaller than 8"
        yield f"html.{suffix}", b"<!DOCTYPE html><html>404</html>", "HTML"
        yield f"zeros.{suffix}", bytes(500), "not an image"
    good = dicom()
    for part in (1, 2, 10, 50, 99):
        yield f"cut{part}.dcm", good[: len(good) * part // 100], ""
    for name, change in {
        "rows": {"Rows": 65535},
        "frames": {"NumberOfFrames": 10**6},
        "no_rows": {"Rows": 0},
        "samples": {"SamplesPerPixel": 3},
        "colour": {"PhotometricInterpretation": "CMYK"},
        "stored": {"BitsStored": 99},
        "allocated": {"BitsAllocated": 7},
        "representation": {"PixelRepresentation": 5},
        "constant": {"PixelData": bytes(64 * 64)},
        "one": {"Rows": 1, "Columns": 4096},
    }.items():
        yield f"{name}.dcm", dicom(**change), ""
    yield "page.dcm", b"\n\n<html><body>Please log in</body></html>", "HTML"
    yield "text.dcm", b"patient,label\n", "text file"
    yield "archive.png", zipped(), "ZIP"
    yield "nifti.png", b"\x1f\x8b\x08\0" + bytes(400), "gzip"
    yield "paper.jpg", b"%PDF-1.7" + bytes(400), "PDF"
    yield "a.png", encoded("GIF"), "GIF"
    yield "b.png", encoded("WEBP"), "WebP"
    yield "c.png", encoded("BMP"), "BMP"
    yield "nan.tif", encoded("TIFF", np.full((64, 64), np.nan, np.float32)), "not finite"
    yield "inf.tif", encoded("TIFF", np.where(PIXELS > 9, PIXELS, np.inf).astype("f4")), "finite"
    yield "bomb.png", png_that_declares(20000, 20000, 20000), "too many pixels"
    yield "large.png", png_that_declares(9000, 9000, 900), "more pixels than the file can hold"
    yield "bomb.dcm", deflate_bomb(), "deflated data"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, data, _ in bad_files():
        (folder / name).write_bytes(data)
    for number in range(10):
        (folder / f"good{number}.png").write_bytes(encoded("PNG", PIXELS + np.uint8(number)))
    (folder / "good.jpg").write_bytes(encoded("TIFF"))
    (folder / "good.dcm").write_bytes(dicom())
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.mark.slow
def test_every_bad_file_is_named_with_its_reason_and_every_good_one_is_read(corpus: Path) -> None:
    found = audit(FolderSource(FolderOptions(path=corpus)))
    reasons = dict(found.unreadable)
    expected = {name: reason for name, _, reason in bad_files()}
    assert len(expected) >= 60
    assert set(reasons) == set(expected)
    for name, reason in expected.items():
        assert reason in reasons[name], name
        assert str(corpus) not in reasons[name]
    assert found.readable == 12
    assert found.ignored == {"not a regular file": 1}
    assert found.notes == {"a TIFF file named .jpg": 1}


def memory(field: str) -> int:
    """Return a line of this process's memory table in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) >> 10
    raise AssertionError(field)


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["bomb.png", "large.png", "bomb.dcm", "rows.dcm", "frames.dcm"])
def test_a_bomb_takes_less_than_200_mib(corpus: Path, name: str) -> None:
    read(corpus / "good.dcm", "auto")  # imports pydicom
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before = memory("VmRSS")
    with pytest.raises(DataError):
        read(corpus / name, "auto")
    assert memory("VmHWM") - before < 200


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(DataError, match="permission denied"):
        read(tmp_path / "a.png", "auto")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "LZW", "DICOM"])
def test_flipped_bytes_give_an_image_or_a_reason_and_never_a_crash(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    lzw = encoded("TIFF", compression="tiff_lzw")
    good = {"DICOM": dicom(), "LZW": lzw}.get(kind) or encoded(kind)
    rng = np.random.default_rng(11)
    images, reasons = 0, []
    for _ in range(300):
        damaged = bytearray(good)
        for place in rng.integers(-300, 600, 3):
            damaged[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(damaged)
        try:
            image = read(tmp_path / "a", "auto")
        except DataError as error:
            reasons.append(str(error))
        else:
            assert image.window[0] < image.window[1]
            images += 1
    assert images + len(reasons) == 300
    assert reasons
    assert CANARY not in " ".join(reasons)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_no_patient_name_is_printed_by_inspect(tmp_path: Path) -> None:
    good = dicom(PatientBirthDate="19700101", StudyDate="20200101")
    (tmp_path / "good.dcm").write_bytes(good)
    (tmp_path / "date.dcm").write_bytes(good.replace(b"19700101", b"CANARY01"))
    for part in range(5, 100, 5):
        (tmp_path / f"cut{part}.dcm").write_bytes(good[: len(good) * part // 100])
    syntax = good.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.CAN\0")
    (tmp_path / "syntax.dcm").write_bytes(syntax)
    (tmp_path / "number.dcm").write_bytes(
        dicom(WindowCenter="1234", WindowWidth="5678").replace(b"1234", b"CANA")
    )
    printed = []
    for flags in (["--json"], ["--workers", "2"]):
        command = [sys.executable, "-c", "from dira_core.cli.data import app; app()"]
        done = subprocess.run(
            [*command, "inspect", str(tmp_path), *flags], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "CAN" not in done.stdout
        printed.append(done.stdout)
    reasons = dict(json.loads(printed[0])["unreadable"])
    assert {"cut5.dcm", "cut95.dcm", "syntax.dcm", "number.dcm"} <= set(reasons)
    assert printed[1].startswith("23 images: 2 readable")
