"""A cache whose build was killed, starved of space or short of a worker is completed later."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from parts import forked, until_done

from dira_core.data.caching import build
from dira_core.data.pieces import PIECE
from dira_core.errors import DataError, ResourceError, RunFolderError
from dira_core.files import planned
from dira_core.testing import TinySource
from dira_core.types import Image

pytestmark = pytest.mark.faults

N = 4 * PIECE + 5


def source() -> TinySource:
    return TinySource(N, size=24)


def build_at(folder: Path, workers: int = 0, of: TinySource | None = None) -> None:
    build(of or source(), folder, {"source": "test"}, workers=workers)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "building.lock"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return every byte of a cache nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "c"
    build_at(folder)
    return contents(folder)


class Slow(TinySource):
    def read(self, index: int) -> Image:
        time.sleep(0.003)
        return super().read(index)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_build_killed_at_any_instant_goes_on_where_it_was(
    tmp_path: Path, whole: dict[str, bytes], workers: int
) -> None:
    rng, folder, slow = random.Random(workers), tmp_path / "c", Slow(N, size=24)
    died = until_done(
        lambda resume: build_at(folder, workers, slow), lambda: rng.uniform(0.02, 0.3), kills=10
    )
    assert died >= 3
    assert contents(folder) == whole


@pytest.mark.parametrize("number", range(1, 9))
def test_a_build_killed_after_each_small_file_ends_with_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], number: int
) -> None:
    folder = tmp_path / "c"

    def killed() -> None:
        os.environ["DIRA_FAILPOINTS"] = f"file.after_write:kill@{number}"
        planned.cache_clear()
        build_at(folder)

    _, status = os.waitpid(forked(killed), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    parts = len(list(folder.glob("*.part")))
    assert parts == min(max(number - 2, 0), 5)
    build_at(folder)
    assert contents(folder) == whole


def test_pieces_that_are_whole_are_not_decoded_again_but_damaged_ones_are(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    class Counting(TinySource):
        stop_at, reads = N, 0

        def read(self, index: int) -> Image:
            if index == self.stop_at:
                raise KeyboardInterrupt
            self.reads += 1
            return super().read(index)

    counting = Counting(N, size=24)
    counting.stop_at = 3 * PIECE + 1
    with pytest.raises(KeyboardInterrupt):
        build_at(tmp_path / "c", of=counting)
    path = tmp_path / "c" / "pixels-000001.bin"
    data = bytearray(path.read_bytes())
    data[1000] ^= 8
    path.write_bytes(data)
    counting.stop_at, counting.reads = N, 0
    build_at(tmp_path / "c", of=counting)
    sampled = 16 + 1  # for their size, and for whether they are volumes
    assert counting.reads <= N - 3 * PIECE + PIECE + sampled
    assert contents(tmp_path / "c") == whole


def test_two_builders_of_one_folder_are_told(tmp_path: Path) -> None:
    class Nested(TinySource):
        def read(self, index: int) -> Image:
            if index == 7:
                build_at(tmp_path / "c", of=TinySource(N, size=24))
            return super().read(index)

    with pytest.raises(RunFolderError, match="is in use by pid"):
        build_at(tmp_path / "c", of=Nested(N, size=24))


def test_too_little_space_is_told_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(ResourceError, match=r"needs about 0\.0 GiB, .* 0\.0 GiB left: free space"):
        build_at(tmp_path / "c")
    assert not list((tmp_path / "c").glob("pixels-*"))


@pytest.mark.slow
def test_a_disk_that_fills_up_on_the_way_loses_nothing(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()

    def on_a_small_disk() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x00020000) != 0:
            os._exit(77)
        assert libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None) == 0
        assert libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=300k") == 0
        plenty = shutil.disk_usage(tmp_path)._replace(free=2**40)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: plenty)
        with pytest.raises(ResourceError, match="the same command again"):
            build_at(disk / "c")
        shutil.copytree(disk / "c", tmp_path / "c")
        os._exit(6)

    _, status = os.waitpid(forked(on_a_small_disk), 0)
    if os.waitstatus_to_exitcode(status) == 77:
        pytest.skip("no right to mount a small disk")
    assert os.waitstatus_to_exitcode(status) == 6
    assert list((tmp_path / "c").glob("*.part"))
    build_at(tmp_path / "c")
    assert contents(tmp_path / "c") == whole


class Deadly(TinySource):
    def read(self, index: int) -> Image:
        if index == 2 * PIECE + 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


@pytest.mark.slow
def test_a_builder_whose_worker_is_killed_says_so_and_goes_on_later(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    with pytest.raises(ResourceError, match="worker died"):
        build_at(tmp_path / "c", workers=2, of=Deadly(N, size=24))
    build_at(tmp_path / "c", workers=2)
    assert contents(tmp_path / "c") == whole


def test_an_index_that_was_changed_by_hand_never_reads_outside_its_file(tmp_path: Path) -> None:
    from dira_core.data import cacheindex

    cache = build(source(), tmp_path / "c", {"source": "test"})
    for field, value in (("offset", 2**60), ("offset", -8), ("height", 2**31), ("piece", 99)):
        changed = cache.index.entries.copy()
        changed[field][3] = value
        index = cacheindex.Index(changed, cache.index.names, [], {}, {})
        cacheindex.write(tmp_path / "c", index, cache.header.pieces, cache.header.made_from)
        with pytest.raises(DataError, match="build it again"):
            type(cache)(cache._options).read(3)
    assert np.array_equal(cache.read(3).pixels, source().read(3).pixels)
