from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from volumes import write_series

from dira_core import digests
from dira_core.data import caching
from dira_core.data.cache import CacheSource
from dira_core.data.folder import FolderSource
from dira_core.data.manifest import ManifestSource
from dira_core.data.sharding import write_shards
from dira_core.data.shards import ShardSource
from dira_core.errors import CheckpointError
from dira_core.seen import SEEN, Seen, hand_on, of_image, of_source, place_of, read, with_initial
from dira_core.source_options import CacheOptions, FolderOptions, ManifestOptions, ShardsOptions
from dira_core.testing import TinySource


def drawn(folder: Path, n: int, seed: int = 0) -> FolderSource:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(n):
        pixels = rng.integers(0, 256, (9, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return FolderSource(FolderOptions(path=folder))


def test_a_digest_is_the_start_of_what_sha256sum_prints(tmp_path: Path) -> None:
    source = drawn(tmp_path / "a", 1)
    found = source.digest(0)
    assert found is not None
    whole = hashlib.sha256(source.path(0).read_bytes()).hexdigest()
    assert f"{found % 2**64:016x}" == whole[:16]


def test_an_image_is_known_by_its_bytes_whatever_it_is_called(tmp_path: Path) -> None:
    source = drawn(tmp_path / "a", 3)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/1.png").rename(tmp_path / "b/another.png")
    again = FolderSource(FolderOptions(path=tmp_path / "b"))
    assert np.array_equal(of_source(source).files, of_source(again).files)
    assert len(of_source(source).files) == 3
    other = drawn(tmp_path / "c", 3, seed=1)
    assert not np.isin(of_source(other).files, of_source(source).files).any()


def test_shards_hold_the_bytes_of_the_files_and_a_cache_their_pixels(tmp_path: Path) -> None:
    source = drawn(tmp_path / "a", 4)
    write_shards(source, tmp_path / "shards", {}, size=2**20)
    shards = ShardSource(ShardsOptions(path=str(tmp_path / "shards")))
    assert np.array_equal(of_source(shards).files, of_source(source).files)
    caching.build(source, tmp_path / "cache", {})
    cached = of_source(CacheSource(CacheOptions(path=tmp_path / "cache")))
    assert (len(cached.files), cached.images, cached.unknown) == (0, 4, 0)
    assert np.array_equal(cached.pixels, np.unique([of_image(source, i) for i in range(4)]))


def test_patients_are_known_by_their_id_in_any_list(tmp_path: Path) -> None:
    drawn(tmp_path / "a", 4)
    for name, who in (("one", "77,77,8,"), ("two", "9,x,8,77")):
        lines = [f"a/{i}.png,{patient}" for i, patient in enumerate(who.split(","))]
        (tmp_path / f"{name}.csv").write_text("\n".join(["image,patient", *lines]) + "\n")
    one, two = (
        of_source(ManifestSource(ManifestOptions(path=tmp_path / f"{name}.csv")))
        for name in ("one", "two")
    )
    assert (len(one.patients), len(two.patients)) == (2, 4)
    assert set(one.patients) < set(two.patients)
    assert set(one.patients) == set(digests.of_texts(["77", "8"]))
    assert 0 < one.patients.min() <= one.patients.max() < 2**62


def test_it_is_kept_to_the_bit_with_what_its_initial_weights_saw(tmp_path: Path) -> None:
    first, second = drawn(tmp_path / "a", 3), drawn(tmp_path / "b", 2, seed=1)
    (tmp_path / "run/weights").mkdir(parents=True)
    with_initial(first, None).write(tmp_path / "run/weights" / SEEN)
    both = with_initial(second, str(tmp_path / "run"))
    assert set(both.files) == set(of_source(first).files) | set(of_source(second).files)
    assert both.images == 5
    again = with_initial(first, str(tmp_path / "run"))  # the next stage of the same run
    assert again.images == 3
    both.write(tmp_path / "x")
    back = read(tmp_path / "x")
    assert np.array_equal(back.files, both.files)
    assert (back.images, tuple(back.sources)) == (5, both.sources)


def test_data_of_the_same_names_and_sizes_are_seen_too(tmp_path: Path) -> None:
    sites = []
    for seed, site in enumerate("ab"):
        (tmp_path / site).mkdir()
        for number in range(3):
            pixels = np.random.default_rng([seed, number]).integers(0, 256, (9, 12), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{site}/{number}.tif")
        sites.append(FolderSource(FolderOptions(path=tmp_path / site)))
    assert sites[0].fingerprint() == sites[1].fingerprint()
    (tmp_path / "run/weights").mkdir(parents=True)
    with_initial(sites[0], None).write(tmp_path / "run/weights" / SEEN)
    both = with_initial(sites[1], str(tmp_path / "run"))
    assert set(both.files) == {site.digest(i) for site in sites for i in range(3)}
    assert both.images == 6


def test_what_is_not_known_is_counted_once_of_the_same_data(tmp_path: Path) -> None:
    source = drawn(tmp_path / "a", 3)
    source.path(1).unlink()
    (tmp_path / "run/weights").mkdir(parents=True)
    with_initial(source, None).write(tmp_path / "run/weights" / SEEN)
    again = with_initial(source, str(tmp_path / "run"))
    assert (again.images, again.unknown) == (3, 1)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    assert of_source(TinySource(5)).unknown == 5
    source = drawn(tmp_path / "a", 3)
    source.path(1).unlink()
    assert (of_source(source).images, of_source(source).unknown) == (3, 1)
    (tmp_path / "foreign.pth").touch()
    assert with_initial(source, str(tmp_path / "foreign.pth")).gaps == (
        "what its initial weights (foreign.pth) saw",
    )


def test_it_lies_beside_weights_and_goes_with_them(tmp_path: Path) -> None:
    (tmp_path / "run/weights").mkdir(parents=True)
    assert place_of(tmp_path / "run") == tmp_path / "run/weights" / SEEN
    assert place_of(tmp_path / "run/weights/backbone.safetensors") == place_of(tmp_path / "run")
    export = tmp_path / "timm.safetensors"
    hand_on(tmp_path / "run", export)
    assert not place_of(export).exists()
    Seen(np.array([-3, 5])).write(place_of(tmp_path / "run"))
    hand_on(tmp_path / "run", export)
    assert place_of(export).name == "timm.seen.safetensors"
    assert read(place_of(export)).files.tolist() == [-3, 5]


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, "cut"])
def test_a_damaged_one_is_named(damage: bytes | str, tmp_path: Path) -> None:
    place = tmp_path / SEEN
    Seen(np.arange(50)).write(place)
    place.write_bytes(place.read_bytes()[:-9] if isinstance(damage, str) else damage)
    with pytest.raises(CheckpointError, match="is damaged, or of another dira"):
        read(place)


def test_a_series_is_known_whichever_way_it_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        voxels = rng.integers(0, 900, (9, 10, 4)).astype(np.int16)
        made = write_series(
            tmp_path / "apart" / str(number), voxels, SeriesInstanceUID=f"1.2.{number}"
        )
        (tmp_path / "flat").mkdir(exist_ok=True)
        for path in made:  # under other names, in another order
            shutil.copy(path, tmp_path / "flat" / f"{9 - int(path.stem)}-{number}.dcm")
    (tmp_path / "apart/0/DICOMDIR").write_bytes(b"an index")
    (tmp_path / "apart/1/notes").write_bytes(b"no slice")
    apart = FolderSource(FolderOptions(path=tmp_path / "apart", series=True))
    split = FolderSource(FolderOptions(path=tmp_path / "flat", series="split"))
    expected = {apart.digest(0), apart.digest(1)}
    assert len(expected) == 2
    assert None not in expected
    assert {split.digest(0), split.digest(1)} == expected
    assert of_source(split).unknown == 0
    last = sorted((tmp_path / "flat").glob("*-1.dcm"))[-1]
    last.write_bytes(last.read_bytes() + b"\0\0")  # not the slice that names the series
    assert len({split.digest(0), split.digest(1)} & expected) == 1
    last.unlink()
    assert None in {split.digest(0), split.digest(1)}


def test_shards_hand_on_the_patients_of_their_images(tmp_path: Path) -> None:
    drawn(tmp_path / "a", 4)
    ids = ["77", "0077", "", "P-3"]
    lines = [f"a/{i}.png,{who}" for i, who in enumerate(ids)]
    (tmp_path / "list.csv").write_text("\n".join(["image,patient", *lines]) + "\n")
    manifest = ManifestSource(ManifestOptions(path=tmp_path / "list.csv"))
    write_shards(manifest, tmp_path / "shards", {}, size=2)
    shards = ShardSource(ShardsOptions(path=str(tmp_path / "shards")))
    assert shards.patients is not None
    assert shards.patients.tolist() == digests.of_texts(ids).tolist()
    assert np.array_equal(of_source(shards).patients, of_source(manifest).patients)
    write_shards(shards, tmp_path / "again", {}, size=3)
    again = ShardSource(ShardsOptions(path=str(tmp_path / "again")))
    assert again.patients is not None
    assert np.array_equal(again.patients, shards.patients)
