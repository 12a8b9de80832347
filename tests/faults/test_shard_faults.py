"""Archives that mean harm are refused or harmless: nothing is ever unpacked."""

from __future__ import annotations

import gzip
import io
import os
import resource
import signal
import struct
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from parts import forked, until_done
from PIL import Image as Pillow

from dira_core.data import shardfiles
from dira_core.data.shardfiles import Shard
from dira_core.data.shardindex import SAMPLE, ShardIndex
from dira_core.data.sharding import write_shards
from dira_core.data.shards import INDEX, ShardSource
from dira_core.errors import DataError
from dira_core.source_options import ShardsOptions
from dira_core.testing import TinySource
from dira_core.types import Image

pytestmark = pytest.mark.faults


def png(side: int = 16) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(side).integers(0, 255, (side, side), np.uint8)
    Pillow.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.devmajor, info.devminor = 1, 3
    return info


def shard(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        for each in members:
            alone = isinstance(each, tarfile.TarInfo)
            info, data = (each, b"") if alone else (member(each[0]), each[1])
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def opened(path: Path) -> ShardSource:
    return ShardSource(ShardsOptions(path=str(path), cache=path.parent / "kept"))


GOOD = ("good.png", png())


def sparse(path: Path) -> Path:
    """Write a shard whose second member is a sparse file of 1 TiB."""
    header = bytearray(member("bomb.png", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 16)
    header[483:495] = b"%011o\0" % 2**31
    header[124:136] = b"%011o\0" % 16
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    body = GOOD[1] + bytes(-len(GOOD[1]) % 512)
    first = member(GOOD[0])
    first.size = len(GOOD[1])
    path.write_bytes(first.tobuf() + body + bytes(header) + bytes(512 + 1024))
    return path


def zipped(path: Path) -> Path:
    shard(path, GOOD)
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


ATTACKS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "parent": (lambda p: shard(p, GOOD, ("../evil.png", png())), "a name that leads elsewhere"),
    "within": (lambda p: shard(p, GOOD, ("a/../../e.png", png())), "a name that leads elsewhere"),
    "absolute": (lambda p: shard(p, GOOD, ("/etc/evil.png", png())), "a name that leads elsewhere"),
    "symlink": (
        lambda p: shard(p, GOOD, member("x.png", tarfile.SYMTYPE, "/etc/passwd")),
        "no plain file",
    ),
    "hardlink": (
        lambda p: shard(p, GOOD, member("x.png", tarfile.LNKTYPE, "good.png")),
        "no plain file",
    ),
    "device": (lambda p: shard(p, GOOD, member("x.png", tarfile.CHRTYPE)), "no plain file"),
    "disk": (lambda p: shard(p, GOOD, member("x.png", tarfile.BLKTYPE)), "no plain file"),
    "pipe": (lambda p: shard(p, GOOD, member("x.png", tarfile.FIFOTYPE)), "no plain file"),
    "sparse": (sparse, "no plain file"),
    "twice": (lambda p: shard(p, GOOD, GOOD), "'good' twice"),
    "again": (lambda p: shard(p, GOOD, ("b.png", png()), ("good.json", b"{}")), "'good' twice"),
    "gzip": (zipped, "no plain tar file"),
    "text": (lambda p: (p.write_text("hello " * 999), p)[1], "no plain tar file"),
    "html": (lambda p: (p.write_bytes(b"<html>404</html>" * 99), p)[1], "no plain tar file"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_shard_that_means_harm_is_refused_whole(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    make, message = ATTACKS[name]
    path = make(tmp_path / "in" / "a.tar")
    with pytest.raises(DataError, match=message) as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.rglob("*")} == {"in", "a.tar"}


def test_empty_shards_hold_no_image(tmp_path: Path) -> None:
    for data, message in ((b"", "empty file"), (bytes(1024), "no image in 1"), (bytes(9999), "no")):
        (tmp_path / "a.tar").write_bytes(data)
        with pytest.raises(DataError, match=message):
            opened(tmp_path / "a.tar")


def test_a_shard_cut_short_anywhere_is_told(tmp_path: Path) -> None:
    images = [(f"{i}.png", png(16 + i)) for i in range(4)]
    data = shard(tmp_path / "w.tar", *images).read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    path = tmp_path / "a.tar"
    for length in [*range(1, end, 97), *range(512, end + 1, 512)]:
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match="no plain tar file, or cut short"):
            opened(path)
    path.write_bytes(data[: end + 512])
    assert len(opened(path)) == 4


@pytest.mark.slow
def test_bytes_flipped_anywhere_give_images_or_reasons_and_never_a_crash(tmp_path: Path) -> None:
    members = [(f"{i}.png", png(16 + i)) for i in range(4)]
    members.append(("3.json", b'{"dira": {"window": [0, 9]}}'))
    good = shard(tmp_path / "w.tar", *members).read_bytes()
    rng, outcomes = np.random.default_rng(3), []
    for attempt in range(300):
        damaged = bytearray(good)
        for place in rng.integers(0, 5000, 3):
            damaged[place] = rng.integers(256)
        path = tmp_path / f"{attempt}.tar"
        path.write_bytes(damaged)
        try:
            source = opened(path)
            for i in range(len(source)):
                source.read(i)
            outcomes.append("fine")
        except DataError:
            outcomes.append("told")
    assert len(outcomes) == 300
    assert set(outcomes) == {"fine", "told"}


@pytest.mark.slow
def test_a_hundred_thousand_members_are_harmless(tmp_path: Path) -> None:
    path, image = tmp_path / "a.tar", png(8)
    padded = image + bytes(-len(image) % 512)
    with path.open("wb") as file:
        for number in range(100_000):
            info = member(f"{number:06}.png")
            info.size = len(image)
            file.write(info.tobuf(tarfile.USTAR_FORMAT) + padded)
        file.write(bytes(1024))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = opened(path)
    assert len(source) == 100_000
    assert source.read(99_999).pixels.shape == (1, 8, 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_a_bomb_in_a_shard_is_refused_when_it_is_read(tmp_path: Path) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 15000, 15000, 8, 0, 0, 0, 0))
    squeezer = zlib.compressobj(9)
    rows = b"".join(squeezer.compress(bytes(15001)) for _ in range(2000)) + squeezer.flush()
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    source = opened(shard(tmp_path / "a.tar", ("bomb.png", bomb), GOOD))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="more pixels than the file can hold|too many pixels"):
        source.read(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert source.read(1).pixels.shape == (1, 16, 16)


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[1]",
        b'{"dira": 3}',
        b'{"dira": {"window": ["a", 1]}}',
        b'{"dira": {"window": [1]}}',
        b'{"dira": {"window": [NaN, 1]}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_json_that_is_none_changes_nothing(tmp_path: Path, text: bytes) -> None:
    source = opened(shard(tmp_path / "a.tar", ("a.png", png()), ("a.json", text)))
    image = source.read(0)
    assert image.window == (0.0, 255.0)
    assert image.spacing is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shard", 7),
        ("shard", -1),
        ("start", 2**40),
        ("start", -9),
        ("length", 2**62),
        ("image", 0),
        ("image", 10**9),
        ("image_size", 10**9),
        ("json_size", -1),
        ("cls", 10**9),
    ],
)
def test_an_index_that_leads_out_of_its_shards_is_not_believed(
    tmp_path: Path, field: str, value: int
) -> None:
    write_shards(TinySource(6), tmp_path / "s", {}, size=3)
    place = tmp_path / "s" / INDEX
    index = ShardIndex.from_bytes(place.read_bytes())
    samples = index.samples.copy()
    samples[field][2] = value
    assert samples.dtype == SAMPLE
    place.write_bytes(ShardIndex(index.shards, None, samples, index.keys).to_bytes())
    source = opened(tmp_path / "s")  # looked again
    assert len(source) == 6
    assert source.read(2).pixels.shape == (1, 24, 24)


class Slow(TinySource):
    def read(self, index: int) -> Image:
        time.sleep(0.002)
        return super().read(index)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_writer_killed_at_any_instant_ends_with_the_same_shards(
    tmp_path: Path, workers: int
) -> None:
    rng, slow = np.random.default_rng(workers), Slow(120)

    def write(resume: bool) -> None:
        write_shards(slow, tmp_path / "s", {}, size=10, workers=workers)

    died = until_done(write, lambda: float(rng.uniform(0.05, 0.3)), kills=6)
    assert died >= 2
    write_shards(TinySource(120), tmp_path / "whole", {}, size=10)
    for path in (tmp_path / "whole").iterdir():
        if path.suffix == ".tar" or path.name == INDEX:
            assert (tmp_path / "s" / path.name).read_bytes() == path.read_bytes()


def test_a_copy_that_a_killed_process_left_half_fetched_is_not_used(tmp_path: Path) -> None:
    write_shards(TinySource(6), tmp_path / "s", {}, size=3)
    files, copies = fsspec.filesystem("memory"), tmp_path / "copies"
    for path in (tmp_path / "s").iterdir():
        files.pipe(f"/killed/{path.name}", path.read_bytes())

    def fetch_and_die() -> None:
        source = ShardSource(ShardsOptions(path="memory://killed", cache=copies))
        source._files._limit = 10**9

        def half(shard: Shard, path: Path) -> None:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        shardfiles.fetch = half
        source.read(0)

    _, status = os.waitpid(forked(fetch_and_die), 0)
    assert os.WIFSIGNALED(status)
    assert list(copies.glob(".*.tmp"))
    again = ShardSource(ShardsOptions(path="memory://killed", cache=copies))
    assert again.read(0).pixels.shape == (1, 24, 24)
    assert not list(copies.glob(".*.tmp"))
    files.rm("/killed", recursive=True)
