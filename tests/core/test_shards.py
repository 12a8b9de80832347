"""Tar shards hold what their source held, in the layout of others, and are read in blocks."""

from __future__ import annotations

import gc
import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.numpy import load, save
from typer.testing import CliRunner
from volumes import write_series

from dira_core.cli import command_line
from dira_core.data import shardfiles
from dira_core.data.audit import audit
from dira_core.data.caching import build
from dira_core.data.folder import FolderSource
from dira_core.data.images import Images
from dira_core.data.loader import Loader
from dira_core.data.manifest import SYNONYMS, ManifestSource
from dira_core.data.phantom import PhantomSource
from dira_core.data.readers import read
from dira_core.data.shardfiles import Shard, ShardFiles, expanded, fetch, find, make_room
from dira_core.data.sharding import Written, write_shards
from dira_core.data.shards import ShardSource
from dira_core.digests import of_texts
from dira_core.draws import shuffled_in_blocks
from dira_core.errors import DataError, RecipeError, ResourceError, RunFolderError, StorageError
from dira_core.layering import data_layer
from dira_core.roles import Source
from dira_core.settings import Settings
from dira_core.source_options import FolderOptions, ManifestOptions, PhantomOptions, ShardsOptions
from dira_core.testing import TinySource
from dira_core.types import Image


def encoded(seed: int, kind: str = "PNG", side: int = 20) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side), np.uint8)
    Pillow.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Pillow.open(io.BytesIO(data)))


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def opened(path: object, **options: Any) -> ShardSource:
    return ShardSource(ShardsOptions(path=str(path), **options))


def written(source: Source, folder: Path, size: int = 5, **options: Any) -> Written:
    return write_shards(source, folder, {"source": "test"}, size=size, **options)


@pytest.fixture
def manifest(tmp_path: Path) -> ManifestSource:
    lines = ["image,finding,patient"]
    for i in range(12):
        kind = ("PNG", "JPEG", "TIFF")[i % 3]
        (tmp_path / f"{i}.bin").write_bytes(encoded(i, kind))
        lines.append(f"{i}.bin,{'xyz'[i % 2] if i % 4 else ''},P{i // 3}")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    return ManifestSource(ManifestOptions(path=tmp_path / "m.csv", label="finding"))


def test_files_are_copied_as_they_are_with_what_is_known_of_them(
    manifest: ManifestSource, tmp_path: Path
) -> None:
    done = written(manifest, tmp_path / "s")
    assert (done.images, len(done.shards), done.left_out) == (12, 3, [])
    found: dict[str, bytes] = {}
    for path in sorted((tmp_path / "s").glob("*.tar")):
        with tarfile.open(path) as file:  # the oracle
            found |= {m.name: file.extractfile(m).read() for m in file}  # type: ignore[union-attr]
    assert len(found) == 24
    for i in range(12):
        ending = ("png", "jpg", "tif")[i % 3]
        assert found[f"{i:09d}.{ending}"] == manifest.path(i).read_bytes()
        known = json.loads(found[f"{i:09d}.json"])
        assert known["name"] == f"{i}.bin"
        assert known.get("label") == ("xyz"[i % 2] if i % 4 else None)
        assert known["dira"] == {"patient": manifest.patients[i]}
    source = opened(tmp_path / "s", label="label")
    assert len(source) == 12
    assert source.classes == manifest.classes
    assert np.array_equal(source.labels, manifest.labels)
    assert source.name(7) == "shard-000001.tar/000000007"
    for i in range(12):
        before, after = manifest.read(i), source.read(i)
        assert np.array_equal(after.pixels, before.pixels)
        assert (after.window, after.spacing) == (before.window, before.spacing)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files it forgets
def test_webdataset_reads_our_shards_and_we_read_its(
    manifest: ManifestSource, tmp_path: Path
) -> None:
    webdataset = pytest.importorskip("webdataset")
    written(manifest, tmp_path / "s")
    paths = [str(path) for path in sorted((tmp_path / "s").glob("*.tar"))]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(12)]
    for i, sample in enumerate(samples):
        assert sample[("png", "jpg", "tif")[i % 3]] == manifest.path(i).read_bytes()
        assert json.loads(sample["json"])["name"] == f"{i}.bin"
    gc.collect()
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        for i in range(6):
            writer.write({"__key__": f"a/{i}", "png": encoded(i), "cls": i % 3, "json": {"k": i}})
    source = opened(tmp_path / "theirs.tar", label="cls")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2]
    for i in range(6):
        assert np.array_equal(source.read(i).pixels[0], pixels_of(encoded(i)))
        assert source.name(i) == f"theirs.tar/a/{i}"


def test_ids_of_patients_beside_images_are_numbered_as_those_of_a_list(tmp_path: Path) -> None:
    ids = ["P1", 17, None, " P1 ", ["P1"], True]
    members: dict[str, bytes] = {}
    for i, who in enumerate(ids):
        members |= {f"{i}.png": encoded(i), f"{i}.json": json.dumps({"patient": who}).encode()}
    found = opened(tar(tmp_path / "a.tar", members)).patients
    assert found is not None
    assert found.tolist() == of_texts(["P1", "17", "", "P1", "", ""]).tolist()
    assert opened(tar(tmp_path / "b.tar", {"0.png": encoded(0)})).patients is None


@pytest.mark.parametrize("key", [*SYNONYMS["patient"], "PatientID", "Patient"])
def test_a_patient_may_be_called_as_in_a_list(tmp_path: Path, key: str) -> None:
    known = json.dumps({"name": "x", key: "P1"}).encode()
    found = opened(tar(tmp_path / "a.tar", {"0.png": encoded(0), "0.json": known})).patients
    assert found is not None
    assert found.tolist() == of_texts(["P1"]).tolist()


def test_an_index_of_another_version_is_made_anew(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"{i}.png": encoded(i) for i in range(11)})
    assert len(opened(path)) == 11
    (index,) = tmp_path.glob("*.index")
    arrays = load(index.read_bytes()[32:])
    data = save({**arrays, "samples": arrays["samples"].reshape(-1, 8)})
    index.write_bytes(hashlib.sha256(data).digest() + data)
    assert np.array_equal(opened(path).read(3).pixels[0], pixels_of(encoded(3)))
    assert load(index.read_bytes()[32:])["samples"].shape == arrays["samples"].shape


class Deep(TinySource):
    """Images of 8 and 16 bits, floats and colour, with windows and spacings of their own."""

    def read(self, index: int) -> Image:
        rng = np.random.default_rng(index)
        if index == 3:
            raise DataError("torn")
        if index == 0:
            return Image(rng.integers(0, 256, (3, 20, 30), np.uint8), (5.0, 99.0))
        if index == 1:
            deep = rng.integers(0, 4000, (1, 20, 30)).astype(np.uint16)
            return Image(deep, (100.0, 3000.0), (0.5, 0.25))
        return Image(rng.normal(0, 100, (1, 20, 30)).astype(np.float32), (-50.0, 150.0))


def test_images_without_files_become_png_and_keep_window_and_spacing(tmp_path: Path) -> None:
    done = written(Deep(5), tmp_path / "s")
    assert done.left_out == [("tiny-3", "torn")]
    source = opened(tmp_path / "s", label="label")
    assert [source.name(i)[-1] for i in range(4)] == ["0", "1", "2", "4"]
    for i, at in enumerate([0, 1, 2]):
        before, after = Deep(5).read(at), source.read(i)
        assert after.spacing == before.spacing
        low, high = before.window
        expected = np.clip((before.pixels.astype(float) - low) / (high - low), 0, 1)
        low, high = after.window
        found = np.clip((after.pixels.astype(float) - low) / (high - low), 0, 1)
        assert np.abs(found - expected).max() < 1e-5
        if before.pixels.dtype.kind == "u":
            assert np.array_equal(after.pixels, before.pixels)
            assert after.window == before.window
    assert opened(tmp_path / "s", window="full").read(1).window == (0.0, 65535.0)
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("window", ["auto", "full", "percentile", (20.0, 90.0)])
def test_files_are_read_from_shards_by_the_window_they_were_given(
    tmp_path: Path, window: Any
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0.png").write_bytes(encoded(0))
    pixels = np.random.default_rng(5).integers(0, 4096, (24, 20)).astype(np.uint16)
    Pillow.fromarray(pixels).save(folder / "1.tif")
    curve = {"WindowCenter": 700, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"}
    kind = {"PhotometricInterpretation": "MONOCHROME1"}
    write_series(folder / "dicom", pixels[..., None], **curve, **kind)
    files = FolderSource(FolderOptions(path=folder, window=window))
    written(files, tmp_path / "s")
    source, full = opened(tmp_path / "s"), opened(tmp_path / "s", window="full")
    for i in range(3):
        before, after = files.read(i), source.read(i)
        assert np.array_equal(after.pixels, before.pixels)
        assert after.window == before.window
        assert full.read(i).window == read(files.path(i), "full").window


def test_volumes_and_deep_colour_have_no_place_in_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 3 images .*shards hold images"):
        written(TinySource(3, size=16, dims=3), tmp_path / "s")


@pytest.mark.slow
def test_workers_write_the_same_bytes_and_a_second_time_writes_nothing(tmp_path: Path) -> None:
    ticks: list[int] = []
    for name, workers in (("here", 0), ("there", 2)):
        written(TinySource(23), tmp_path / name, workers=workers, tick=ticks.append)
    files = [sorted((tmp_path / name).iterdir()) for name in ("here", "there")]
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    for one, other in zip(*files, strict=True):
        if one.suffix != ".lock":
            assert one.read_bytes() == other.read_bytes()
    assert sum(ticks) == 46
    stamps = {p: p.stat().st_mtime_ns for p in files[0] if p.suffix != ".lock"}
    again = written(TinySource(23), tmp_path / "here")
    assert again.images == 23
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    for other in (TinySource(24), TinySource(23, size=28)):
        with pytest.raises(RunFolderError, match="fingerprint"):
            written(other, tmp_path / "here")
    with pytest.raises(RunFolderError, match="size is 5, not 6"):
        written(TinySource(23), tmp_path / "here", size=6)


def test_a_writer_that_was_stopped_goes_on_with_the_shards_that_are_missing(
    tmp_path: Path,
) -> None:
    class Stopping(TinySource):
        stop_at, reads = 13, 0

        def read(self, index: int) -> Image:
            if index == self.stop_at:
                raise KeyboardInterrupt
            self.reads += 1
            return super().read(index)

    source = Stopping(23)
    with pytest.raises(KeyboardInterrupt):
        written(source, tmp_path / "s")
    assert len(list((tmp_path / "s").glob("*.tar"))) == 2
    with pytest.raises(DataError, match="a part is still to be written: give the command"):
        opened(tmp_path / "s")
    source.stop_at, source.reads = 99, 0
    written(source, tmp_path / "s")
    assert source.reads == 13
    written(TinySource(23), tmp_path / "whole")
    for path in (tmp_path / "whole").glob("*.tar"):
        assert (tmp_path / "s" / path.name).read_bytes() == path.read_bytes()
    assert len(opened(tmp_path / "s")) == 23


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{b,c}.tar", ["a-b.tar", "a-c.tar"]),
        ("{008..011}", ["008", "009", "010", "011"]),
        ("{0..1}{x,y}", ["0x", "0y", "1x", "1y"]),
        ("{{0..1},9}", ["0", "9", "1", "9"]),
    ],
)
def test_braces_stand_for_what_a_shell_makes_of_them(pattern: str, found: list[str]) -> None:
    assert sorted(expanded(pattern)) == sorted(found)


@pytest.mark.parametrize("pattern", ["{0..99999999}", "{9..0}", "{0..999}{0..999}"])
def test_braces_that_stand_for_too_much_or_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(RecipeError, match=r"stands for"):
        expanded(pattern)


def test_shards_are_found_by_folder_pattern_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        tar(tmp_path / f"train-{i:03}.tar", {f"{i}.png": encoded(i)})
    tar(tmp_path / "val-000.tar", {"v.png": encoded(9)})
    counts = {
        str(tmp_path): 4,
        str(tmp_path / "train-*.tar"): 3,
        str(tmp_path / "train-{000..001}.tar"): 2,
        str(tmp_path / "{train,val}-000.tar"): 2,
        str(tmp_path / "val-00?.tar"): 1,
    }
    for pattern, count in counts.items():
        assert len(find(pattern)) == len(opened(pattern)) == count
    monkeypatch.chdir(tmp_path)
    assert len(opened("train-*.tar")) == 3
    assert len(opened("val-000.tar")) == 1
    for pattern in ("none.tar", str(tmp_path / "train-{000..005}.tar"), str(tmp_path / "x-*.tar")):
        with pytest.raises(DataError, match=r"no (\.tar file|shard)"):
            opened(pattern)


@pytest.mark.parametrize("name", ["out{v2}", "a{b,c}", "{0..2}", "what?", "[x]*"])
def test_a_path_that_exists_is_no_pattern(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    assert written(TinySource(6), folder).images == len(opened(folder)) == 6
    one = tar(tmp_path / f"{name}.tar", {"0.png": encoded(0)})
    tar(tmp_path / "whatx.tar", {"0.png": encoded(0)})
    assert [Path(shard.url) for shard in find(str(one))] == [one]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        ({"a.tar": b""}, "shards"),
        ({"a.tar": b"", "shards.json": b""}, "shards"),
        ({"a.tar": b"", "b.png": b""}, "folder"),
        ({"a.tar": b"", "sub/b.png": b""}, "folder"),
        ({"b.png": b""}, "folder"),
    ],
)
def test_a_folder_of_shards_is_recognised_by_itself(
    tmp_path: Path, make: dict[str, bytes], name: str
) -> None:
    for file, data in make.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(data)
    assert data_layer(str(tmp_path)).values["data"]["name"] == name


@pytest.mark.parametrize("value", ["x/train-{000..012}.tar", "s3://bucket/x-*.tar", "gs://b/x"])
def test_patterns_and_urls_mean_shards(value: str) -> None:
    assert data_layer(value).values["data"] == {"name": "shards", "path": value}


def test_the_image_of_a_sample_can_be_chosen_and_others_are_left_out(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        {
            "1.json": b"{}",
            "1.mask.png": encoded(1),
            "1.image.png": encoded(2),
            "2.txt": b"no image",
            "d/3.jpg": encoded(3, "JPEG"),
            "d/._3.jpg": b"shadow",
            "d/4.PNG": encoded(4),
        },
    )
    one, other = (opened(path, image=f"{name}.png") for name in ("mask", "image"))
    assert len(one) == len(other) == 1
    assert np.array_equal(one.read(0).pixels[0], pixels_of(encoded(1)))
    assert np.array_equal(other.read(0).pixels[0], pixels_of(encoded(2)))
    assert one.fingerprint() != other.fingerprint()
    for ending, name in (("jpg", "a.tar/d/3"), ("png", "a.tar/d/4")):
        assert opened(path, image=ending).name(0) == name
    with pytest.raises(DataError, match=r"no image in 1 shards: see data\.image"):
        opened(path, image="dcm")
    with pytest.raises(RecipeError, match="no sample of the shards has a label 'finding'"):
        opened(path, image="jpg", label="finding")


@pytest.mark.parametrize("name", ["1.2.840.113619.{}.png", "case.{:03}.png", "1.{}.jpg"])
def test_images_that_dots_make_one_sample_are_not_lost_in_silence(
    tmp_path: Path, name: str
) -> None:
    members = {name.format(i): encoded(i) for i in range(3)}
    path = tar(tmp_path / "a.tar", members)
    with pytest.raises(RecipeError, match=r"'.*0\..*' and '.*1\..*' .* set data\.image"):
        opened(path)
    ending = name.format(1).partition(".")[2]
    chosen = opened(path, image=ending)
    assert len(chosen) == 1
    assert np.array_equal(chosen.read(0).pixels[0], pixels_of(encoded(1)))


def test_an_empty_image_counts_as_unreadable_and_is_named(tmp_path: Path) -> None:
    members = {"0.png": encoded(0), "1.json": b"{}", "1.png": b"", "2.png": encoded(2)}
    members |= {"3.json": b"{}", "4.jpg": b""}
    path = tar(tmp_path / "a.tar", members)
    for _ in range(2):  # by a look, then by the index
        source = opened(path)
        names = [source.name(i) for i in range(len(source))]
        assert names == [f"a.tar/{i}" for i in (0, 1, 2, 4)]
        assert audit(source).unreadable == [(f"a.tar/{i}", "empty file") for i in (1, 4)]


def test_an_index_is_kept_and_used_and_a_replaced_shard_is_noticed(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"{i}.png": encoded(i) for i in range(3)})
    before = opened(path)
    (index,) = tmp_path.glob("shards-*.index")
    stamp = index.stat().st_mtime_ns
    assert opened(path).fingerprint() == before.fingerprint()
    assert index.stat().st_mtime_ns == stamp
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    assert opened(path).fingerprint() == before.fingerprint()  # damaged: looked again
    longer = tar(tmp_path / "b.tar", {f"{i}.png": encoded(i) for i in range(4)}).read_bytes()
    path.write_bytes(longer)
    assert len(opened(path)) == 4
    size = path.stat().st_size
    tar(path, {f"{9 - i}.png": encoded(i) for i in range(4)})
    assert path.stat().st_size == size  # the index of before fits by name and size
    with pytest.raises(DataError, match="not the one that was indexed"):
        opened(path).read(0)


def test_an_index_of_all_serves_a_part_of_the_shards(tmp_path: Path) -> None:
    written(TinySource(23), tmp_path / "s")
    whole = opened(tmp_path / "s")
    part = opened(tmp_path / "s" / "shard-00000{1,4}.tar")
    assert not list((tmp_path / "s").glob("shards-*.index"))
    assert [part.name(i) for i in range(len(part))] == [
        whole.name(i) for i in (5, 6, 7, 8, 9, 20, 21, 22)
    ]
    assert np.array_equal(part.read(5).pixels, whole.read(20).pixels)
    assert part.blocks is not None
    assert part.blocks.sizes.tolist() == [5, 3]


def test_shards_of_one_name_and_size_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for site, kind in (("a", "cat"), ("b", "dog")):
        for own in ("own", "foreign"):
            members: dict[str, bytes] = {}
            for i in range(4):
                known = {"label": kind, "patient": f"{site}{i}"}
                members |= {f"{i}.png": encoded(i + 9 * (site == "b"))}
                members |= {f"{i}.json": json.dumps(known).encode()}
            tar(tmp_path / own / site / "x.tar", members)
        opened(tmp_path / "own" / site / "x.tar")
        (kept,) = (tmp_path / "own" / site).glob("*.index")
        kept.rename(kept.with_name("shards.index"))
    sizes = {path.stat().st_size for path in tmp_path.rglob("*.tar")}
    assert len(sizes) == 1
    fingerprints, ids = set(), [f"{site}{i}" for site in "ab" for i in range(4)]
    for own in ("own", "foreign", "own", "foreign"):
        source = opened(tmp_path / own / "{a,b}" / "*.tar", label="label")
        assert source.patients is not None
        assert source.labels is not None
        assert source.patients.tolist() == of_texts(ids).tolist()
        assert source.labels.tolist() == [0] * 4 + [1] * 4
        assert len({source.name(i) for i in range(8)}) == 8
        fingerprints.add(source.fingerprint())
    assert len(fingerprints) == 1


def test_shards_travel_to_workers(tmp_path: Path) -> None:
    written(TinySource(9), tmp_path / "s")
    source = opened(tmp_path / "s")
    source.read(0)
    again = ForkingPickler.loads(ForkingPickler.dumps(source))
    assert again.fingerprint() == source.fingerprint()
    assert np.array_equal(again.read(7).pixels, source.read(7).pixels)


@pytest.fixture
def remote() -> Iterator[str]:
    """Return the URL of a folder of shards that is on no disk."""
    url, files = "memory://bucket/set", fsspec.filesystem("memory")
    yield url
    files.rm("/bucket", recursive=True)


def put(url: str, folder: Path, *names: str) -> None:
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        if not names or path.name in names or path.suffix == ".tar":
            files.pipe(f"{url.removeprefix('memory:/')}/{path.name}", path.read_bytes())


def test_remote_shards_are_fetched_once_and_read_alike(tmp_path: Path, remote: str) -> None:
    written(TinySource(23), tmp_path / "s")
    put(remote, tmp_path / "s")
    here = opened(tmp_path / "s")
    there = opened(remote, cache=tmp_path / "copies")
    assert not list((tmp_path / "copies").glob("*.tar"))  # the index came along
    assert len(there) == 23
    for i in range(23):
        assert np.array_equal(there.read(i).pixels, here.read(i).pixels)
    copies = {p: p.stat().st_mtime_ns for p in (tmp_path / "copies").glob("*.tar")}
    assert len(copies) == 5
    fsspec.filesystem("memory").rm("/bucket/set/shard-000000.tar")
    assert np.array_equal(there.read(2).pixels, here.read(2).pixels)
    assert there.fingerprint() == here.fingerprint()


def test_remote_shards_without_an_index_are_looked_through_once(
    tmp_path: Path, remote: str
) -> None:
    for i in range(3):
        tar(tmp_path / "s" / f"x-{i}.tar", {f"{i}{j}.png": encoded(10 * i + j) for j in range(4)})
    put(remote, tmp_path / "s")
    source = opened(f"{remote}/x-{{0..2}}.tar", cache=tmp_path / "copies")
    assert len(source) == 12
    assert len(list((tmp_path / "copies").glob("*.index"))) == 1
    for path in (tmp_path / "copies").glob("*.tar"):
        path.unlink()
    again = opened(f"{remote}/x-*.tar", cache=tmp_path / "copies")
    assert not list((tmp_path / "copies").glob("*.tar"))
    assert again.fingerprint() == source.fingerprint()
    assert np.array_equal(again.read(7).pixels[0], pixels_of(encoded(13)))


def test_copies_never_take_more_room_than_they_may(tmp_path: Path, remote: str) -> None:
    written(TinySource(40), tmp_path / "s")
    put(remote, tmp_path / "s")
    size = (tmp_path / "s/shard-000000.tar").stat().st_size
    shards = find(remote)
    files = ShardFiles(shards, tmp_path / "copies", limit=3 * size)
    for number in [0, 1, 2, 0, 3, 4, 0, 5]:
        expected = (tmp_path / "s" / shards[number].name).read_bytes()[100:700]
        assert files.read(number, 100, 600) == expected
        kept = list((tmp_path / "copies").glob("*.tar"))
        assert sum(path.stat().st_size for path in kept) <= 3 * size
    make_room(tmp_path / "copies", 0)
    assert not list((tmp_path / "copies").glob("*.tar"))


def test_a_copy_that_another_process_removes_is_read_on_and_then_fetched_again(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(TinySource(10), tmp_path / "s")
    put(remote, tmp_path / "s")
    shards, copies, replace = find(remote), tmp_path / "copies", os.replace
    expected = (tmp_path / "s" / shards[0].name).read_bytes()[:600]

    def replace_and_lose(old: Path, new: Path) -> None:
        replace(old, new)
        make_room(copies, 0)

    monkeypatch.setattr("os.replace", replace_and_lose)
    files = ShardFiles(shards, copies, limit=10**9)
    assert files.read(0, 0, 600) == expected
    assert not list(copies.glob("*.tar"))
    with files.open(0) as file:
        assert file.read(600) == expected


def test_room_is_made_beside_files_that_vanish(tmp_path: Path) -> None:
    (tmp_path / "vanished.tar").symlink_to(tmp_path / "nowhere")
    (tmp_path / "copy.tar").write_bytes(b"1234")
    make_room(tmp_path, 0)
    assert not (tmp_path / "copy.tar").exists()


def test_what_cannot_be_reached_or_came_damaged_says_so(tmp_path: Path, remote: str) -> None:
    with pytest.raises(DataError, match=r"no \.tar file at 'memory://bucket/set'"):
        opened(remote)
    with pytest.raises(RecipeError, match="'nobody://x/y' cannot be read"):
        opened("nobody://x/y")
    written(TinySource(9), tmp_path / "s")
    put(remote, tmp_path / "s")
    source = opened(remote, cache=tmp_path / "copies")
    fsspec.filesystem("memory").pipe("/bucket/set/shard-000001.tar", b"shorter")
    with pytest.raises(DataError, match=r"shard-000001\.tar came in another size"):
        source.read(6)
    fsspec.filesystem("memory").rm("/bucket/set/shard-000001.tar")
    with pytest.raises(DataError, match=r"nothing at 'memory://.*shard-000001\.tar'"):
        source.read(6)
    assert not list((tmp_path / "copies").glob(".*.tmp"))
    local = Shard(str(tmp_path / "s/shard-000000.tar"), 10)
    with pytest.raises(DataError, match="cut short"):
        ShardFiles([local], tmp_path, 0).read(0, 0, 10**9)


def test_a_shard_on_a_machine_that_does_not_answer_is_not_called_missing() -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(StorageError, match=r"'http://127\.0\.0\.1:9/x\.tar' cannot be reached"):
        opened("http://127.0.0.1:9/x.tar")


@pytest.mark.parametrize("silent", [1, 3, 10**6])
def test_a_machine_that_does_not_answer_for_a_while_makes_no_image_unreadable(
    tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    written(TinySource(9), tmp_path / "s")
    put(remote, tmp_path / "s")
    there, here = opened(remote, cache=tmp_path / "copies"), opened(tmp_path / "s")
    left, ask = iter(range(silent)), fsspec.open

    def answer(*asked: Any) -> Any:
        if next(left, None) is not None:
            raise ConnectionResetError
        return ask(*asked)

    monkeypatch.setattr("fsspec.open", answer)
    monkeypatch.setattr(shardfiles, "WAITS_S", (0, 0, 0))
    images = Images(there, 1)
    if silent <= 3:
        for i in range(9):
            at, image = images.readable(i)
            assert at == i
            assert np.array_equal(image.pixels, here.read(i).pixels)
        return
    with pytest.raises(StorageError, match=r"cannot be reached .*--resume"):
        images.readable(0)
    assert images.why_not(0) is None
    with pytest.raises(StorageError):
        there.digest(0)


@pytest.mark.parametrize(
    "use",
    [
        lambda source, folder: written(source, folder, workers=0),
        lambda source, folder: build(source, folder, {}),
        lambda source, folder: audit(source),
    ],
    ids=["shard", "cache", "inspect"],
)
def test_an_image_that_cannot_be_reached_is_never_called_unreadable_for_good(
    tmp_path: Path, use: Callable[[Source, Path], object]
) -> None:
    class Silent(TinySource):
        answers = False

        def read(self, index: int) -> Image:
            if index == 1 and not self.answers:
                raise StorageError("'s3://x' cannot be reached")
            return super().read(index)

    source = Silent(6)
    with pytest.raises(StorageError):
        use(source, tmp_path / "out")
    source.answers = True
    use(source, tmp_path / "out")


def test_a_full_disk_for_copies_is_not_called_unreachable(tmp_path: Path, remote: str) -> None:
    written(TinySource(9), tmp_path / "s")
    put(remote, tmp_path / "s")
    with pytest.raises(ResourceError, match=r"shard-000000\.tar .* free \d+ bytes .* data\.cache"):
        fetch(find(remote)[0], Path("/dev/full"))


def test_an_order_in_blocks_is_a_permutation_that_opens_few_blocks_at_a_time() -> None:
    sizes = [7, 1, 30, 12, 5, 9, 22, 3]
    block = np.repeat(np.arange(8), sizes)
    orders = [shuffled_in_blocks(sizes, 3, seed=1, epoch=epoch) for epoch in range(40)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(sum(sizes)))
        seen = block[order.numpy()]
        first = {b: int(np.argmax(seen == b)) for b in range(8)}
        last = {b: len(seen) - 1 - int(np.argmax(seen[::-1] == b)) for b in range(8)}
        for at in range(len(seen)):
            assert sum(first[b] <= at <= last[b] for b in range(8)) <= 3
    assert len({tuple(order.tolist()) for order in orders}) == 40
    starts = np.bincount([int(block[order[0]]) for order in orders], minlength=8)
    assert (starts > 0).sum() >= 5
    assert not torch.equal(orders[0], shuffled_in_blocks(sizes, 3, seed=2, epoch=0))
    mixed = block[orders[0].numpy()][:20]
    assert len(set(mixed.tolist())) > 1  # within a group the blocks are mixed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 3])
def test_an_epoch_of_shards_visits_every_image_once_and_resumes_anywhere(
    tmp_path: Path, workers: int
) -> None:
    written(PhantomSource(PhantomOptions(n=48, size=32)), tmp_path / "s", size=6)
    settings = Settings.model_validate(
        {"views": {"size": 16}, "train": {"batch_size": 4}, "loader": {"workers": workers}}
    )
    source = opened(tmp_path / "s", mixed=2)
    loader = Loader(source, settings, 1)
    try:
        whole = list(loader.batches(1))
        rest = list(loader.batches(1, start=20))
    finally:
        loader.close()
    visited = torch.cat([crops.index for crops in whole])
    assert sorted(visited.tolist()) == list(range(48))
    assert torch.equal(visited, loader.order(1))
    for group in visited.view(4, 12):
        assert len({int(index) // 6 for index in group}) == 2
    assert torch.equal(torch.cat([crops.index for crops in rest]), visited[20:])
    for a, b in zip(whole[5:], rest, strict=True):
        assert torch.equal(a.pixels[0], b.pixels[0])


def test_the_command_writes_shards_and_says_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(5):
        (tmp_path / "images" / f"{i}.png").write_bytes(encoded(i))
    (tmp_path / "images" / "torn.png").write_bytes(b"")
    words = ["data", "shard", str(tmp_path / "images"), "--out", str(tmp_path / "s")]
    result = CliRunner().invoke(command_line(), [*words, "--size", "2", "--workers", "0"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"5 images in 3 shards in {tmp_path / 's'}"
    assert lines[2].split() == ["left", "out", "1", "x", "empty", "file"]
    assert lines[3].strip() == "torn.png"
    assert lines[-1].endswith(f"dira run --data {tmp_path / 's'}")
    source, folder = opened(tmp_path / "s"), FolderSource(FolderOptions(path=tmp_path / "images"))
    assert all(np.array_equal(source.read(i).pixels, folder.read(i).pixels) for i in range(5))


def test_null_is_no_label(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i, label in enumerate(["b", None, 0, False]):
        members |= {f"{i}.png": encoded(i), f"{i}.json": json.dumps({"label": label}).encode()}
    source = opened(tar(tmp_path / "a.tar", members), label="label")
    assert source.labels is not None
    assert source.labels.tolist() == [2, -1, 0, 1]
    assert source.classes == ["0", "False", "b"]


def test_numbers_are_ordered_as_numbers_and_texts_as_texts(tmp_path: Path) -> None:
    labels = itertools.cycle(["10", "9", "x", ""])
    members: dict[str, bytes] = {}
    for i in range(8):
        members |= {f"{i}.png": encoded(i), f"{i}.cls": next(labels).encode()}
    source = opened(tar(tmp_path / "a.tar", members), label="cls")
    assert source.classes == ["9", "10", "x"]
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 2, -1] * 2
