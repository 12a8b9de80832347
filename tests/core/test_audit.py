"""`dira data inspect` counts what is there, exactly, in text and in JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from dira_core.cli.data import app, report
from dira_core.data.audit import Spread, audit
from dira_core.data.folder import FolderSource
from dira_core.data.manifest import ManifestSource
from dira_core.errors import DataError, RecipeError
from dira_core.roles import Source
from dira_core.source_options import FolderOptions, ManifestOptions
from dira_core.types import Image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number, side in enumerate((16, 20, 40)):
        pixels = rng.integers(0, 200, (side, 2 * side), np.uint8)
        Pillow.fromarray(pixels).save(tmp_path / f"{number}.png")
    Pillow.fromarray(pixels).save(tmp_path / "copy.tif")
    Pillow.fromarray(rng.integers(0, 200, (30, 30, 3), np.uint8)).save(tmp_path / "rgb.jpg")
    Pillow.fromarray(rng.integers(0, 60000, (30, 30), np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "bad.png").write_bytes(b"")
    (tmp_path / "text.txt").write_text("x")
    return tmp_path


def test_an_audit_counts_what_a_folder_holds(images: Path) -> None:
    found = audit(FolderSource(FolderOptions(path=images)))
    assert (found.images, found.examined, found.readable) == (7, 7, 6)
    assert found.formats == {"PNG": 4, "TIFF": 1, "JPEG": 1}
    assert found.bits == {"8": 5, "16": 1}
    assert found.channels == {"1": 5, "3": 1}
    width, height = found.sizes
    assert (width, height) == (Spread(30, 36.0, 80), Spread(16, 30.0, 40))
    assert found.intensity is not None
    assert found.intensity[0] == 0
    assert found.intensity[1] > 50000
    assert found.duplicates == [["2.png", "copy.tif"]]
    assert found.unreadable == [("bad.png", "empty file")]
    assert found.ignored == {".txt": 1}
    advice = " / ".join(found.advice)
    for word in ("cannot be read", "repeat another", "colour", "bit depths", "views.size"):
        assert word in advice


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on fewer cores
def test_reading_in_processes_finds_the_same(images: Path) -> None:
    source = FolderSource(FolderOptions(path=images))
    assert audit(source, workers=2) == audit(source)


@pytest.mark.slow
def test_an_interrupt_ends_reading_processes_and_says_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Pillow.fromarray(rng.integers(0, 60000, (1500, 1500), np.uint16)).save(tmp_path / "0.png")
    for number in range(1, 400):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    command = [sys.executable, "-m", "dira_core", "data", "inspect", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(children.read_text().split()) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.4)  # processes that begin anew would still be importing
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all of them
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted; what was saved stays, and --help says how to go on\n"


def test_a_limit_reads_images_spread_over_the_source(images: Path) -> None:
    ticks: list[None] = []
    source = FolderSource(FolderOptions(path=images))
    found = audit(source, limit=2, tick=lambda: ticks.append(None))
    assert (found.images, found.examined, len(ticks)) == (7, 2, 2)
    assert found.formats == {"PNG": 1}
    assert found.unreadable == [("bad.png", "empty file")]  # the fourth of seven


def test_labels_are_counted_by_their_text(images: Path) -> None:
    (images / "m.csv").write_text("image,label\n0.png,b\n1.png,\n2.png,b\n")
    options = ManifestOptions(path=images / "m.csv", label="label")
    assert audit(ManifestSource(options)).labels == {"b": 2, "none": 1}


class Numbers(Source):
    """A source of no files, one image of which cannot be read."""

    def __len__(self) -> int:
        return 3

    def read(self, index: int) -> Image:
        if index == 1:
            raise DataError("no such number")
        pixels = np.full((1, 9, 9), index, np.float32)
        pixels[0, 0, 0] = -5
        return Image(pixels, (-5.0, 2.0), (0.5, 0.25))

    def name(self, index: int) -> str:
        return f"number {index}"

    def fingerprint(self) -> str:
        return "numbers"


def test_any_source_can_be_audited() -> None:
    found = audit(Numbers())
    assert found.unreadable == [("number 1", "no such number")]
    assert (found.bits, found.intensity) == ({"32": 2}, (-5.0, 2.0))
    assert found.spacing == [Spread(0.25, 0.25, 0.25), Spread(0.5, 0.5, 0.5)]
    assert found.spaced == 2
    assert found.window_low == Spread(-5, -5, -5)


def test_json_and_text_say_the_same(images: Path) -> None:
    runner = CliRunner()
    as_json = json.loads(runner.invoke(app, ["inspect", str(images), "--json"]).stdout)
    text = runner.invoke(app, ["inspect", str(images)]).stdout
    found = audit(FolderSource(FolderOptions(path=images)))
    assert as_json == json.loads(found.to_json())
    assert text.splitlines() == list(report(found))
    assert as_json["unreadable"] == [["bad.png", "empty file"]]
    assert "7 images: 6 readable" in text
    assert "unreadable 1 x empty file" in text


def test_long_lists_are_cut_in_text_only(images: Path) -> None:
    for number in range(15):
        (images / f"bad{number:02d}.png").write_bytes(b"")
    found = audit(FolderSource(FolderOptions(path=images)))
    lines = list(report(found))
    assert any("and 6 more" in line for line in lines)
    assert "bad14.png" not in "\n".join(lines)
    assert "bad14.png" in found.to_json()


def test_exit_code_is_3_only_if_nothing_can_be_read(images: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["inspect", str(images)]).exit_code == 0
    for path in images.iterdir():
        path.write_bytes(b"")
    result = runner.invoke(app, ["inspect", str(images)])
    assert result.exit_code == 3
    assert "7 images: 0 readable" in result.stdout


def test_a_source_is_found_by_name_and_a_wrong_one_is_explained(tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["inspect", "phantom", "--limit", "3"])
    assert "2048 images, 3 examined: 3 readable" in result.stdout
    assert "format" not in result.stdout  # nothing is a file here
    for wrong, message in (("phantm", "phantom"), ("manifest", "path")):
        error = runner.invoke(app, ["inspect", wrong]).exception
        assert isinstance(error, RecipeError)
        assert message in str(error)
