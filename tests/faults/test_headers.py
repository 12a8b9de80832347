"""Nothing of a DICOM header but geometry and intensity leaves it, also when a run crashes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from crew import crew, ended, wait_for
from kit import kit
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset

from dira_core.api import run
from dira_core.layering import Layer
from dira_core.recipe import Recipe
from dira_core.resolving import resolve

pytestmark = pytest.mark.faults

CANARIES = {
    "PatientName": "CANARY^JANE",
    "PatientID": "CANARY-MRN",
    "PatientBirthDate": "19CANARY",
    "StudyDescription": "CANARY study",
    "InstitutionName": "CANARY hospital",
    "ReferringPhysicianName": "CANARY^DOCTOR",
    "StudyInstanceUID": "1.2.3.CANARY",
    "AccessionNumber": "CANARY-ACC",
}
STAND_INS = {"ate": "19700101", "UID": "1.2.3.4.5.67"}
"""What pydicom writes without a complaint, as long as what takes its place."""


@pytest.fixture(scope="module", autouse=True)
def _kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with kit(tmp_path_factory.mktemp("kit")):
        yield


def dicom(path: Path, number: int) -> None:
    pixels = np.random.default_rng(number).integers(0, 255, (24, 24), np.uint8)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB"
    for name in CANARIES:
        setattr(dataset, name, STAND_INS.get(name[-3:], "x" * 12))
    dataset.save_as(path, enforce_file_format=True)


def images(folder: Path) -> Path:
    """Write DICOM files whose headers say CANARY wherever they can, some of them damaged."""
    folder.mkdir()
    for number in range(24):
        path = folder / f"{number}.dcm"
        dicom(path, number)
        data = path.read_bytes().replace(b"x" * 12, b"CANARY^JANE ")
        data = data.replace(b"19700101", b"CANARY01").replace(b"1.2.3.4.5.67", b"1.2.3.CANARY")
        if number % 8 == 3:
            data = data[: len(data) * 3 // 4]
        path.write_bytes(data)
    assert b"CANARY^JANE" in (folder / "0.dcm").read_bytes()
    return folder


def recipe(folder: Path, epochs: int) -> Recipe:
    values = {
        "data": {"name": "folder", "path": str(folder)},
        "backbone": "small-net",
        "discriminator": {"name": "simsiam", "dim": 16, "hidden": 8},
        "restorer": {"name": "unet", "widths": [8, 8, 8]},
        "views": {"size": 16},
        "train": {"epochs": epochs, "batch_size": 4, "precision": "fp32"},
        "log": {"every": 1, "probe": False},
        "loader": {"max_unreadable": 0.5, "workers": 1},
    }
    return resolve([Layer("test", values)]).recipe


def leaks(folder: Path) -> list[str]:
    """Return the files below a folder that hold a canary, in any of three encodings."""
    words = [text.encode(code) for text in ("CANARY", "canary") for code in ("utf-8", "utf-16-le")]
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and any(word in path.read_bytes() for word in words)
    ]


def test_a_run_of_two_processes_writes_and_prints_nothing_of_a_header(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen, folder = recipe(images(tmp_path / "images"), 2), tmp_path / "out" / "run"
    left = ended(tmp_path / "out" / "crew", lambda rank: run(chosen, folder))
    assert [each.code for each in left] == [0, 0], left
    assert len((folder / "unreadable.txt").read_text().splitlines()) == 3
    assert leaks(tmp_path / "out") == []
    assert "CANARY" not in "".join(capfd.readouterr())


def test_a_crash_of_one_process_writes_and_prints_nothing_of_a_header(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen, folder = recipe(images(tmp_path / "images"), 100), tmp_path / "out" / "run"
    with crew(tmp_path / "out" / "crew", lambda rank: run(chosen, folder)) as both:
        wait_for(folder / "unreadable.txt")
        both.kill(1, signal.SIGABRT)
        assert both.left()[0].code == 7
    assert leaks(tmp_path / "out") == []
    assert "CANARY" not in "".join(capfd.readouterr())


def test_an_error_that_ends_a_run_says_nothing_of_a_header(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = images(tmp_path / "images")
    for path in place.iterdir():
        os.truncate(path, path.stat().st_size * 3 // 4)
    chosen, folder = recipe(place, 2), tmp_path / "out" / "run"
    left = ended(tmp_path / "out" / "crew", lambda rank: run(chosen, folder))
    assert [each.code for each in left] == [3, 3]
    assert leaks(tmp_path / "out") == []
    assert "CANARY" not in "".join(capfd.readouterr())
