"""A cache gives back what its source held, opens at once, and says what it left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from typer.testing import CliRunner

from dira_core.cli import command_line
from dira_core.data import cacheindex
from dira_core.data.cache import CacheSource
from dira_core.data.cacheindex import ENTRY, Entry, Index, layout, values
from dira_core.data.caching import build
from dira_core.data.cutting import whole_images
from dira_core.data.dataset import CropDataset, Request
from dira_core.data.folder import FolderSource
from dira_core.data.images import Images
from dira_core.data.manifest import ManifestSource
from dira_core.data.phantom import PhantomSource
from dira_core.data.pieces import PIECE
from dira_core.data.pyramid import levels
from dira_core.errors import DataError, PluginError, RecipeError, RunFolderError
from dira_core.layering import data_layer
from dira_core.roles import Source
from dira_core.settings import Settings
from dira_core.source_options import CacheOptions, FolderOptions, ManifestOptions, PhantomOptions
from dira_core.testing import TinySource
from dira_core.types import Image


class Mixed(Source):
    """Images of several shapes, types, windows and spacings; every fifth cannot be read."""

    def __init__(self, n: int, bad: Sequence[int] = ()) -> None:
        self.n = n
        self.bad = bad
        self.labels = np.arange(n) % 3
        self.words = np.arange(n) * 7
        self.patients = np.arange(n) // 2
        self.classes = ["a", "b", "ü"]

    def __len__(self) -> int:
        return self.n

    def read(self, index: int) -> Image:
        if index in self.bad:
            raise DataError(f"number {index} is torn")
        rng = np.random.default_rng(index)
        shape = (3 if index % 4 == 3 else 1, 40 + index, 50 - index % 9)
        if index % 3 == 0:
            return Image(rng.integers(0, 256, shape, np.uint8), (3.0, 250.0), (0.1, 0.2))
        if index % 3 == 1:
            return Image(rng.integers(0, 4096, shape).astype(">u2"), (0.0, 4095.0))
        return Image(rng.normal(0, 300, shape).astype(np.float32), (-160.0, 240.0), (0.5, 0.5))

    def name(self, index: int) -> str:
        return f"mixed {index}"

    def fingerprint(self) -> str:
        return f"mixed {self.n} {self.bad}"


def built(source: Source, folder: Path, **options: Any) -> CacheSource:
    return build(source, folder, {"source": "test"}, **options)


def opened(folder: Path, **options: Any) -> CacheSource:
    return CacheSource(CacheOptions(path=folder, **options))


def normalised(image: Image) -> np.ndarray:
    low, high = image.window
    found: np.ndarray = np.clip((image.pixels.astype(np.float64) - low) / (high - low), 0, 1)
    return found


def test_every_image_comes_back_with_its_levels_window_and_spacing(tmp_path: Path) -> None:
    source = Mixed(20)
    cache = built(source, tmp_path / "c")
    assert len(cache) == 20
    for index in range(20):
        before, after = source.read(index), cache.read(index)
        assert cache.name(index) == source.name(index)
        assert after.spacing == before.spacing
        if before.pixels.dtype.kind == "u":
            assert np.array_equal(after.pixels, before.pixels)
            assert after.pixels.dtype.itemsize == before.pixels.dtype.itemsize
            assert after.window == before.window
        else:
            assert after.pixels.dtype == np.uint16
            assert np.abs(normalised(after) - normalised(before)).max() <= 0.5001 / 65535
        for level, expected in zip(after.levels, levels(after.pixels), strict=True):
            assert np.array_equal(level, expected)
        assert not after.pixels.flags.writeable
    assert cache.index.entries["spread"].tolist() == [int(i % 3 == 2) for i in range(20)]


def test_labels_words_patients_and_classes_come_along(tmp_path: Path) -> None:
    source = Mixed(9, bad=[4])
    cache, kept = built(source, tmp_path / "c"), [0, 1, 2, 3, 5, 6, 7, 8]
    for name in ("labels", "words", "patients"):
        assert np.array_equal(getattr(cache, name), getattr(source, name)[kept])
    assert cache.classes == source.classes
    bare = built(TinySource(4), tmp_path / "bare")
    assert (bare.words, bare.patients, bare.classes, bare.splits) == (None,) * 4
    assert bare.labels is not None
    assert bare.labels.tolist() == [0, 1, 0, 1]


def test_volumes_have_levels_too(tmp_path: Path) -> None:
    source = TinySource(3, size=36, dims=3)
    cache = built(source, tmp_path / "c")
    image = cache.read(2)
    assert np.array_equal(image.pixels, source.read(2).pixels)
    assert [level.shape for level in image.levels] == [(1, 18, 18, 18), (1, 9, 9, 9)]
    settings = Settings.model_validate({"views": {"size": 9, "scale": [0.5, 1.0]}})
    crops = CropDataset(cache, settings, 2).crops(Request([0, 1, 2], 0))
    assert crops.pixels[0].shape == (3, 1, 9, 9, 9)
    assert (crops.box % 2 == 0).all()


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    cache = built(Mixed(10, bad=[2, 9]), tmp_path / "c")
    assert cache.index.entries["position"].tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
    assert opened(tmp_path / "c").index.left_out == [
        (2, "mixed 2", "number 2 is torn"),
        (9, "mixed 9", "number 9 is torn"),
    ]
    with pytest.raises(DataError, match=r"none of 2 images .*mixed 0: number 0 is torn"):
        built(Mixed(2, bad=[0, 1]), tmp_path / "none")
    assert not (tmp_path / "none" / "cache.json").exists()


@pytest.mark.parametrize("side", [40, 64, 97, 500])
def test_a_cache_takes_at_most_a_third_more_than_its_images(tmp_path: Path, side: int) -> None:
    cache = built(TinySource(8, size=side), tmp_path / "c")
    raw = sum(cache.read(i).pixels.nbytes for i in range(8))
    assert sum(cache.header.pieces) <= 1.36 * raw
    if side >= 500:
        assert sum(cache.header.pieces) <= 1.34 * raw


@pytest.mark.slow
def test_workers_write_the_same_bytes(tmp_path: Path) -> None:
    n, ticks = 2 * PIECE + 9, []
    source = TinySource(n, size=24)
    for name, workers in (("here", 0), ("there", 2)):
        built(source, tmp_path / name, workers=workers, tick=ticks.append)
    files = [sorted((tmp_path / name).iterdir()) for name in ("here", "there")]
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    for one, other in zip(*files, strict=True):
        if one.name != "building.lock":
            assert one.read_bytes() == other.read_bytes()
    assert sum(ticks) == 2 * n


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_source_raises_is_told_by_the_builder(tmp_path: Path, workers: int) -> None:
    class Broken(TinySource):
        def read(self, index: int) -> Image:
            if index == PIECE + 3:
                raise KeyError("rows")
            return super().read(index)

    with pytest.raises(PluginError, match="Broken raised KeyError: 'rows'"):
        built(Broken(2 * PIECE), tmp_path / "c", workers=workers)


def test_colour_can_be_made_grey(tmp_path: Path) -> None:
    source = Mixed(8)
    colour, grey = built(source, tmp_path / "c"), built(source, tmp_path / "g", grey=True)
    assert [len(colour.read(i).pixels) for i in range(8)] == [1, 1, 1, 3, 1, 1, 1, 3]
    assert [len(grey.read(i).pixels) for i in range(8)] == [1] * 8
    of_colour, of_grey = (whole_images(cache, [3], 24, 1) for cache in (colour, grey))
    assert (of_colour - of_grey).abs().max() < 0.01
    assert whole_images(colour, [3], 24, 3).shape == (1, 3, 24, 24)
    with pytest.raises(DataError, match="3 channels, the recipe asks for 2"):
        Images(colour, 2, max_unreadable=0.0).readable(3)


def test_mapped_images_are_not_kept_in_memory(tmp_path: Path) -> None:
    built(TinySource(4, size=48), tmp_path / "c")
    cache = opened(tmp_path / "c")
    images = Images(cache, 1, cache_bytes=2**20)
    first, second = (images.readable(1)[1] for _ in range(2))
    assert first is not second
    assert first.pixels.base is not None


def test_a_cache_travels_as_its_path_and_keeps_its_fingerprint(tmp_path: Path) -> None:
    cache = built(TinySource(300), tmp_path / "c")
    travelling = ForkingPickler.dumps(cache)
    assert len(travelling) < 1000
    again = ForkingPickler.loads(travelling)
    assert again.fingerprint() == cache.fingerprint() == opened(tmp_path / "c").fingerprint()
    assert np.array_equal(again.read(7).pixels, cache.read(7).pixels)
    moved = (tmp_path / "c").rename(tmp_path / "d")
    assert opened(moved).fingerprint() == cache.fingerprint()
    other = built(TinySource(301), tmp_path / "e")
    assert other.fingerprint() != cache.fingerprint()


@pytest.fixture
def manifest(tmp_path: Path) -> ManifestSource:
    lines = ["image,finding,split,patient"]
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8)
        Pillow.fromarray(pixels).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'xy'[i % 2]},{['train', 'test', ''][i % 3]},P{i // 3}")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    return ManifestSource(ManifestOptions(path=tmp_path / "m.csv", label="finding"))


def test_a_split_of_a_cached_manifest_can_be_chosen(
    manifest: ManifestSource, tmp_path: Path
) -> None:
    built(manifest, tmp_path / "c")
    path = tmp_path / "m.csv"
    train = ManifestSource(ManifestOptions(path=path, label="finding", split="train"))
    cached = opened(tmp_path / "c", split="train")
    assert len(cached) == len(train) == 4
    for index in range(4):
        assert np.array_equal(cached.read(index).pixels, train.read(index).pixels)
        assert cached.name(index) == train.name(index)
    assert np.array_equal(cached.labels, train.labels)
    assert np.array_equal(cached.patients, manifest.patients[::3])
    assert cached.classes == ["x", "y"]
    assert cached.fingerprint() != opened(tmp_path / "c").fingerprint()
    with pytest.raises(RecipeError, match="no split 'trian', did you mean 'train'"):
        opened(tmp_path / "c", split="trian")
    again = built(opened(tmp_path / "c"), tmp_path / "again")
    assert np.array_equal(again.splits, manifest.splits)
    assert again.split_names == ["", "test", "train"]


def test_a_cache_of_something_else_is_refused_and_the_same_one_is_left_alone(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "c"
    built(TinySource(9), folder)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix != ".lock"}
    built(TinySource(9), folder)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    with pytest.raises(RunFolderError, match=r"fingerprint is tiny.*, not tiny.*another --out"):
        built(TinySource(10), folder)
    with pytest.raises(RunFolderError, match="grey is False, not True"):
        built(TinySource(9), folder, grey=True)
    with pytest.raises(RunFolderError, match="window is None, not full"):
        build(TinySource(9), folder, {"source": "test", "window": "full"})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="holds something else: use another --out"):
        built(TinySource(9), tmp_path)


def test_a_cache_that_was_stopped_is_not_taken_for_an_empty_folder(tmp_path: Path) -> None:
    class Stopping(TinySource):
        reads = 0

        def read(self, index: int) -> Image:
            self.reads += 1
            if self.reads > 15:
                raise KeyboardInterrupt
            return super().read(index)

    with pytest.raises(KeyboardInterrupt):
        built(Stopping(9), tmp_path / "c")
    with pytest.raises(DataError, match="a part is still to be written: give the command"):
        FolderSource(FolderOptions(path=tmp_path / "c"))


def test_a_folder_with_a_cache_is_recognised_by_itself(tmp_path: Path) -> None:
    built(TinySource(4), tmp_path / "c")
    assert data_layer(str(tmp_path / "c")).values["data"]["name"] == "cache"
    (tmp_path / "c" / "cache.json").unlink()
    assert data_layer(str(tmp_path / "c")).values["data"]["name"] == "folder"


def test_crops_of_a_cache_are_close_to_those_of_its_source(tmp_path: Path) -> None:
    source = PhantomSource(PhantomOptions(n=6, size=200))
    cache = built(source, tmp_path / "c")
    settings = Settings.model_validate({"views": {"size": 96, "scale": [0.3, 0.6]}})
    ours = CropDataset(cache, settings, 2).crops(Request(range(6), 1))
    theirs = CropDataset(source, settings, 2).crops(Request(range(6), 1))
    close = (ours.box - theirs.box).abs().amax((2, 3)) == 0
    assert close.any()
    for view in range(2):
        for row in close[:, view].nonzero():
            difference = ours.pixels[view][row] - theirs.pixels[view][row]
            assert difference.abs().max() < 1e-5
    assert torch.equal(ours.index, theirs.index)
    assert (ours.box - theirs.box).abs().max() <= 2


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("cache.json", b"{", "damaged"),
        ("cache.json", b'{"format": 1}', "damaged"),
        ("cache.json", b'{"format": 99}', "has format 99, this version of dira reads 1"),
        ("cache.json", b"[1]", "damaged"),
        ("index.safetensors", b"", "missing or damaged"),
        ("index.safetensors", None, "missing or damaged"),
    ],
)
def test_a_damaged_cache_says_so(
    tmp_path: Path, name: str, damage: bytes | None, message: str
) -> None:
    built(TinySource(4), tmp_path / "c")
    path = tmp_path / "c" / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "c")


def test_damaged_pixels_are_found_and_lost_ones_are_told(tmp_path: Path) -> None:
    cache = built(TinySource(PIECE + 2), tmp_path / "c")
    assert all(cache.intact(index) for index in range(len(cache)))
    entry, path = cache.entry(5), tmp_path / "c" / "pixels-000000.bin"
    data = bytearray(path.read_bytes())
    data[entry.offset + 3] ^= 1
    path.write_bytes(data)
    (tmp_path / "c" / "pixels-000001.bin").unlink()
    again = opened(tmp_path / "c")
    assert [i for i in range(len(again)) if not again.intact(i)] == [5, PIECE, PIECE + 1]
    with pytest.raises(DataError, match=r"pixels-000001\.bin of the cache is missing"):
        again.read(PIECE)
    path.write_bytes(data[: entry.offset + 9])
    with pytest.raises(DataError, match=r"pixels-000000\.bin of the cache is cut short"):
        opened(tmp_path / "c").read(5)
    assert opened(tmp_path / "c").read(4).pixels.shape == (1, 24, 24)


def entries(n: int) -> Iterator[tuple[float, ...]]:
    for i in range(n):
        piece, place = divmod(i, PIECE)
        yield Entry(i, piece, place * 1400000, 1, 1, 0, 1024, 1024, 0, 255, *[np.nan] * 3, 0, 0)


@pytest.mark.slow
def test_a_hundred_thousand_images_take_little_memory(tmp_path: Path) -> None:
    n = 100_000
    names = [f"patient{number:07d}/study1/view1_frontal.jpg" for number in range(n)]
    columns = {"labels": np.arange(n), "patients": np.arange(n)}
    index = Index(np.array(list(entries(n)), ENTRY), names, [], columns, {})
    cacheindex.write(tmp_path, index, [2**28] * -(-n // PIECE), {})
    cache = opened(tmp_path)
    assert (len(cache), cache.name(n - 1)) == (n, names[-1])
    assert len(ForkingPickler.dumps(cache)) < 1000
    assert cache.index.entries.nbytes <= 120 * n


def test_the_layout_of_levels_is_that_of_the_levels() -> None:
    for shape in ((1, 64, 64), (3, 35, 81), (2, 18, 33, 47), (1, 9, 200)):
        pixels = np.zeros(shape, np.uint8)
        every = [pixels, *levels(pixels)]
        assert [place[1] for place in layout(shape)] == [level.shape for level in every]
        starts = np.cumsum([0, *(level.size for level in every)]).tolist()
        assert [place[0] for place in layout(shape)] == starts[:-1]
        assert values(shape) == starts[-1]


def ask(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(command_line(), ["data", "cache", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_command_says_what_it_wrote_and_what_it_left_out(tmp_path: Path) -> None:
    source = tmp_path / "images"
    source.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64), np.uint8)
        Pillow.fromarray(pixels).save(source / f"{i}.png")
    Pillow.fromarray(pixels.astype(np.float32)).save(source / "deep.tif")
    (source / "torn.png").write_bytes(b"")
    out = tmp_path / "c"
    code, text = ask(str(source), "--out", str(out), "--workers", "0", "--verify")
    assert code == 0
    lines = text.splitlines()
    assert lines[0] == f"4 images in {out}"
    assert "note       1 x spread over 16 bits within their window" in lines
    assert lines[-1] == "damaged    0 of 4 images"
    at = lines.index("left out   1 x empty file")
    assert lines[at + 1].strip() == "torn.png"
    with (out / "pixels-000000.bin").open("r+b") as file:
        file.write(b"\x01\x02\x03")
    code, text = ask(str(source), "--out", str(out), "--workers", "0", "--verify")
    assert code == 3
    *_, damaged, name, advice = text.splitlines()
    assert (damaged, name) == ("damaged    1 of 4 images", "           0.png")
    assert advice == f"advice     remove {out} and give the same command again"


def test_options_of_the_source_can_be_set(manifest: ManifestSource, tmp_path: Path) -> None:
    path, out = str(tmp_path / "m.csv"), tmp_path / "c"
    flags = ["--workers", "0", "--set", "data.label=finding", "--set", "data.window=[10, 99]"]
    assert ask(path, "--out", str(out), *flags)[0] == 0
    cache = opened(out)
    assert cache.classes == ["x", "y"]
    assert cache.read(0).window == (10.0, 99.0)
    assert json.loads((out / "cache.json").read_text())["made_from"]["label"] == "finding"
    for words, message in (
        (["--set", "views.size=3"], "takes data.key=value, got 'views'"),
        (["--set", "data.labl=finding"], "labl"),
    ):
        with pytest.raises(RecipeError, match=message):
            ask(path, "--out", str(tmp_path / "d"), *words)


def test_a_folder_and_its_cache_are_of_the_same_images(real_data: Path, tmp_path: Path) -> None:
    source = FolderSource(FolderOptions(path=real_data / "dicom_series"))
    cache = built(source, tmp_path / "c")
    assert len(cache) == len(source) - len(cache.index.left_out)
    for index in (0, len(cache) // 2, len(cache) - 1):
        before = source.read(int(cache.index.entries["position"][index]))
        after = cache.read(index)
        assert after.spacing == before.spacing
        assert np.abs(normalised(after) - normalised(before)).max() < 1e-5
