"""Folders and manifests: which files are images, in which order, under which name and label."""

from __future__ import annotations

import os
import shutil
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from dira_core.data.folder import FolderSource
from dira_core.data.manifest import ManifestSource
from dira_core.digests import of_texts
from dira_core.errors import DataError, RecipeError
from dira_core.escaping import printable
from dira_core.source_options import FolderOptions, ManifestOptions


def image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16), np.uint8)
    Pillow.fromarray(pixels).save(path, "PNG")
    return path


def folder(path: Path) -> FolderSource:
    return FolderSource(FolderOptions(path=path))


def manifest(path: Path, text: str, **options: object) -> ManifestSource:
    path.write_text(text)
    return ManifestSource(ManifestOptions(path=path, **options))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, name in enumerate(["b.png", "a/z.PNG", "a/b/c.jpeg", "IMG001", "1.2.840.113"]):
        image(tmp_path / name, number)
    return tmp_path


def test_images_are_sorted_named_from_the_root_and_read(images: Path) -> None:
    source = folder(images)
    names = [source.name(index) for index in range(len(source))]
    assert names == ["1.2.840.113", "IMG001", "a/b/c.jpeg", "a/z.PNG", "b.png"]
    expected = np.asarray(Pillow.open(images / "a/z.PNG"))
    assert np.array_equal(source.read(3).pixels[0], expected)
    assert source.labels is None


def test_what_is_no_image_is_left_out_and_counted(images: Path) -> None:
    image(images / ".hidden.png")
    image(images / ".git/x.png")
    image(images / "__MACOSX/b.png")
    image(images / "DICOMDIR")
    (images / "README").write_text("hello")
    (images / "notes.txt").write_text("hello")
    (images / "x.png").mkdir()
    os.mkfifo(images / "pipe.png")
    (images / "gone.png").symlink_to(images / "nowhere")
    (images / "loop.png").symlink_to(images / "loop.png")
    source = folder(images)
    assert len(source) == 5
    assert source.ignored == {
        "hidden": 2,
        "__MACOSX": 1,
        "DICOMDIR": 1,
        "no suffix, no image": 1,
        ".txt": 1,
        "not a regular file": 1,
        "broken link": 2,
    }


def test_links_to_files_and_folders_are_followed_and_circles_end(
    images: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    image(elsewhere / "deep/one.png")
    (images / "linked").symlink_to(elsewhere)
    (images / "two.png").symlink_to(elsewhere / "deep/one.png")
    (elsewhere / "back").symlink_to(images)
    source = folder(images)
    assert {"linked/deep/one.png", "two.png"} < set(source.paths)
    assert len(source) == 7
    assert source.ignored == {"folder linked twice": 1}


def test_an_empty_or_missing_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        folder(tmp_path / "none")
    with pytest.raises(DataError, match=r"looked for \.png .*\.dcm.*found nothing at all"):
        folder(tmp_path)
    (tmp_path / "a.nrrd").write_text("x")
    with pytest.raises(DataError, match=r"found 1 \.nrrd"):
        folder(tmp_path)


def test_fingerprint_follows_names_and_sizes_but_not_the_place(images: Path) -> None:
    before = folder(images).fingerprint()
    copy = images.parent / "copy"
    shutil.copytree(images, copy)
    assert folder(copy).fingerprint() == before
    with (copy / "b.png").open("ab") as file:
        file.write(b"x")
    longer = folder(copy).fingerprint()
    shutil.copy(images / "b.png", copy / "b.png")
    (copy / "b.png").rename(copy / "c.png")
    assert len({before, longer, folder(copy).fingerprint()}) == 3


def test_sources_travel_to_workers(images: Path) -> None:
    for source in (folder(images), manifest(images / "m.csv", "image\nb.png\n")):
        again = ForkingPickler.loads(ForkingPickler.dumps(source))
        assert again.fingerprint() == source.fingerprint()
        assert np.array_equal(again.read(0).pixels, source.read(0).pixels)


def test_a_hundred_thousand_images_travel_in_less_than_6_mb(tmp_path: Path) -> None:
    names = [f"patient{number:07d}/study1/view1_frontal.jpg" for number in range(100_000)]
    source = manifest(tmp_path / "m.csv", "\n".join(["image", *names]))
    assert len(source) == 100_000
    assert source.name(99_999) == names[-1]
    assert len(ForkingPickler.dumps(source)) < 6e6


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    image(tmp_path / "a\x1b[31m\nß.png")
    source = folder(tmp_path)
    assert source.name(0) == "a\\x1b[31m\\nß.png"
    assert source.read(0).pixels.shape == (1, 16, 16)
    assert printable(os.fsdecode(b"\xff.png")) == "\\udcff.png"


LINES = "image,label,split\nb.png,cat,train\na/z.PNG,,test\nIMG001,ant,train\n"


def test_a_manifest_keeps_its_order_and_sorts_its_classes(images: Path) -> None:
    source = manifest(images / "m.csv", LINES, label="label")
    assert [source.name(index) for index in range(3)] == ["b.png", "a/z.PNG", "IMG001"]
    assert source.classes == ["ant", "cat"]
    assert source.labels is not None
    assert source.labels.tolist() == [1, -1, 0]
    expected = np.asarray(Pillow.open(images / "IMG001"))
    assert np.array_equal(source.read(2).pixels[0], expected)


@pytest.mark.parametrize("name", ["patient", "Patient", "PATIENT_ID"])
def test_patients_and_split_of_a_manifest_are_found_in_any_case(images: Path, name: str) -> None:
    source = manifest(images / "m.csv", f"IMAGE,{name},Split\nb.png,1,a\nIMG001,,b\n")
    assert source.patients is not None
    assert source.patients.tolist() == of_texts(["1", ""]).tolist()
    assert source.split_names == ["a", "b"]


def test_labels_mean_the_same_in_every_split(images: Path) -> None:
    text = LINES + "b.png,bee,test\n"
    test = manifest(images / "m.csv", text, label="label", split="test")
    assert (test.paths, test.classes) == (["a/z.PNG", "b.png"], ["ant", "bee", "cat"])
    assert test.labels is not None
    assert test.labels.tolist() == [-1, 1]


def test_a_manifest_as_spreadsheets_write_it_is_read(images: Path) -> None:
    (images / "m.csv").write_bytes(
        b'\xef\xbb\xbf"image","label"\r\n"b.png","a, ""b"""\r\n\r\nIMG001,c\r\n'
    )
    source = ManifestSource(ManifestOptions(path=images / "m.csv", label="label"))
    assert source.paths == ["b.png", "IMG001"]
    assert source.classes == ['a, "b"', "c"]


def test_paths_of_a_manifest_may_be_absolute_but_pipes_are_never_opened(
    images: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    os.mkfifo(images / "pipe.png")
    path = tmp_path_factory.mktemp("lists") / "m.csv"
    text = f"image\n{images / 'b.png'}\n{images / 'pipe.png'}\n/dev/zero\nnone.png\n"
    source = manifest(path, text)
    assert source.read(0).pixels.shape == (1, 16, 16)
    for index, reason in ((1, "not a regular"), (2, "not a regular"), (3, "no such file")):
        with pytest.raises(DataError, match=reason):
            source.read(index)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("img,label\nb.png,1\n", {}, r"no column 'image', did you mean 'img'\?; set data.image"),
        (LINES, {"label": "lable"}, "no column 'lable', did you mean 'label'"),
        (LINES, {"split": "tran"}, "split 'tran', did you mean 'train'"),
        ("image,image\na,b\n", {}, "several columns 'image'"),
        ("image,split,Split\na,b,c\n", {}, "several columns 'split' and 'Split'"),
    ],
)
def test_wrong_columns_and_splits_name_the_nearest(
    tmp_path: Path, text: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        manifest(tmp_path / "m.csv", text, **options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no lines"),
        (b"image\n", "has no lines"),
        (b"image\n \n", "line 2 of the manifest names no image"),
        (b"image,label\nb.png\n", "line 2 .* has 1 cells"),
        (b"image;label\nb.png;0,5\n", "separated by ';', dira reads commas: save it with commas"),
        (b'"image"\t"label"\nb.png\tx\n', "separated by tabs, dira reads commas"),
        (b'image\n"b.png\n', "no CSV file"),
        (b"\x89PNG\r\n\x1a\n\xff", "no CSV file"),
        ("image\nä.png\n".encode("utf-16"), "no CSV file"),
    ],
)
def test_what_is_no_manifest_says_why(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises(DataError, match=message):
        ManifestSource(ManifestOptions(path=tmp_path / "m.csv"))


def test_a_missing_manifest_or_a_pipe_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for name, message in (("none.csv", "no such file"), ("pipe.csv", "not a regular file")):
        with pytest.raises(DataError, match=message):
            ManifestSource(ManifestOptions(path=tmp_path / name))


def test_the_manifest_of_real_images_reads(real_data: Path) -> None:
    path = real_data / "cxr_pediatric" / "labels.csv"
    source = ManifestSource(ManifestOptions(path=path, label="label", split="train"))
    assert (len(source), source.classes) == (2173, ["bacteria", "normal", "virus"])
    assert source.read(0).pixels.shape == (1, 224, 224)
