"""Killed, torn, damaged or out of space: a checkpoint is whole, or the one before is used."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from parts import forked
from saves import (
    ended,
    free_bytes,
    newest,
    on_small_disk,
    planned,
    refusal,
    remount,
    save,
    tensors_of,
)

from dira_core import checkpoint_draft, files
from dira_core import checkpoint_manifest as manifest
from dira_core.checkpoint import Checkpoints
from dira_core.checkpoint_manifest import Entry
from dira_core.errors import CheckpointError, DiraError, ResourceError, RunFolderError
from dira_core.files import FAILPOINTS, FailpointError, Failpoints, write_atomic
from dira_core.saving import Saver

MUTATIONS = int(os.environ.get("DIRA_MUTATIONS", "300"))
KILLS = 50
BITS_APART = 7

pytestmark = [
    pytest.mark.faults,
    # Newer Pythons warn of any fork in a process that has threads; these children only save.
    pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning"),
]

CKPT_POINTS = [name for name in FAILPOINTS if name.startswith("ckpt.")]

both_ways = pytest.mark.parametrize("behind", [False, True], ids=["at once", "behind"])
"""To save in the step, or in a thread while training goes on."""


@both_ways
@pytest.mark.parametrize("when", [1, 2, 3])
@pytest.mark.parametrize("point", CKPT_POINTS)
def test_killed_at_any_failpoint_the_old_or_the_new_checkpoint_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, when: int, behind: bool
) -> None:
    save(tmp_path, 1)

    def train() -> None:
        planned(monkeypatch, f"{point}:kill@{when}")
        for step in range(2, 9):
            save(tmp_path, step, behind=behind)

    assert ended(train) == -signal.SIGKILL
    committed = point in ("ckpt.after_rename", "ckpt.before_prune")
    assert newest(tmp_path) == when + committed
    save(tmp_path, 9)
    assert newest(tmp_path) == 9


@both_ways
@pytest.mark.parametrize("point", CKPT_POINTS)
def test_raised_at_any_failpoint_the_old_or_the_new_checkpoint_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, behind: bool
) -> None:
    save(tmp_path, 1)
    planned(monkeypatch, f"{point}:raise")
    with pytest.raises(FailpointError, match=point):
        save(tmp_path, 2, behind=behind)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".tmp-")]
    assert newest(tmp_path) == 1 + (point in ("ckpt.after_rename", "ckpt.before_prune"))


@pytest.mark.parametrize("action", ["kill", "raise"])
def test_a_small_file_struck_before_its_rename_keeps_its_old_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    path = tmp_path / "status.json"
    write_atomic(path, b"old")

    def work() -> None:
        planned(monkeypatch, f"file.after_write:{action}")
        write_atomic(path, b"new")

    code = ended(work)
    assert code == (-signal.SIGKILL if action == "kill" else 1)
    assert path.read_bytes() == b"old"


def test_every_failpoint_of_the_table_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []
    monkeypatch.setattr(Failpoints, "reach", lambda self, name: reached.append(name))
    write_atomic(tmp_path / "a", b"")
    save(tmp_path, 1)
    assert sorted(reached) == sorted(FAILPOINTS)


@pytest.mark.parametrize("plan", ["", "ckpt.after_data:raise@2"])
def test_failpoints_are_read_from_the_environment_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str
) -> None:
    monkeypatch.setenv("DIRA_FAILPOINTS", plan)
    files.planned.cache_clear()
    try:
        save(tmp_path, 1)
        monkeypatch.setenv("DIRA_FAILPOINTS", "ckpt.after_data:kill")
        if plan:
            with pytest.raises(FailpointError):
                save(tmp_path, 2)
        save(tmp_path, 3)
    finally:
        files.planned.cache_clear()


@pytest.mark.parametrize(
    "plan", ["ckpt.after_dat:kill", "ckpt.after_data", "ckpt.after_data:kill@0", "x:explode"]
)
def test_an_unknown_failpoint_is_refused_with_the_names(plan: str) -> None:
    with pytest.raises(DiraError, match=r"takes name:kill@n.*ckpt\.before_prune"):
        Failpoints(plan)


@pytest.mark.slow
@both_ways
def test_killed_at_random_instants_something_whole_always_loads(
    tmp_path: Path, behind: bool
) -> None:
    delays = random.Random(0)
    last, torn = 1, 0
    started = time.monotonic()
    save(tmp_path, last, 20_000)
    longest = max(0.06, 4 * (time.monotonic() - started))  # a busy disk takes its time

    def train() -> None:
        saver = Saver(Checkpoints(tmp_path, 2), background=behind)
        for step in itertools.count(last + 1):
            tensors = tensors_of(step, 20_000)
            saver.save(step, tensors, {"step": step})
            for _ in range(3):
                tensors["model"]["weight"].add_(1)  # bits of no step, were they written
                saver.poll()

    for _ in range(KILLS):
        child = forked(train)
        time.sleep(delays.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        torn += any(path.name.startswith(".tmp-") for path in tmp_path.iterdir())
        found = newest(tmp_path)
        assert found >= last
        last = found
    assert last > 1
    assert torn > KILLS / 10  # or the kills came at other times than a save's


def test_killed_while_its_fallback_is_damaged_the_new_one_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "state.json").unlink()

    def work() -> None:
        planned(monkeypatch, "ckpt.after_rename:kill")
        save(tmp_path, 2)

    assert ended(work) == -signal.SIGKILL
    assert newest(tmp_path) == 2


def test_one_that_does_not_read_back_deletes_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def torn(self: Path, target: Path) -> Path:
        (self / "model.safetensors").write_bytes(b"")
        return rename(self, target)

    save(tmp_path, 1)
    save(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", torn)
        with pytest.raises(CheckpointError, match=r"step-00000003: model\.safetensors has 0 bytes"):
            save(tmp_path, 3)
    assert (tmp_path / "step-00000001").exists()
    assert Checkpoints(tmp_path, 2).latest() == tmp_path / "step-00000002"


def test_data_is_on_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(file: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}")).partition("-")[0])
        fsync(file)

    def noted_rename(self: Path, target: Path) -> Path:
        done.append(f"rename to {Path(target).name}")
        assert self.parent == Path(target).parent
        return rename(self, target)

    monkeypatch.setattr("os.fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    save(tmp_path / "checkpoints", 1)
    assert done == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "MANIFEST.json",
        ".tmp",
        "rename to step-00000001",
        "checkpoints",
    ]


def flip(draw: st.DrawFn, folder: Path, path: Path) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    path.write_bytes(data)


def truncate(draw: st.DrawFn, folder: Path, path: Path) -> None:
    """Cut the end off, perhaps all of it."""
    data = path.read_bytes()
    path.write_bytes(data[: draw(st.one_of(st.just(0), st.integers(0, len(data) - 1)))])


def append(draw: st.DrawFn, folder: Path, path: Path) -> None:
    """Add bytes."""
    path.write_bytes(path.read_bytes() + draw(st.binary(min_size=1, max_size=9)))


def zero(draw: st.DrawFn, folder: Path, path: Path) -> None:
    """Keep the length, lose a block: what a power cut leaves on some disks."""
    data = bytearray(path.read_bytes())
    start = draw(st.integers(0, len(data) - 1))
    lost = data[start : start + 512]
    assume(any(lost))
    data[start : start + 512] = bytes(len(lost))
    path.write_bytes(data)


def remove(draw: st.DrawFn, folder: Path, path: Path) -> None:
    """Remove the file."""
    path.unlink()


def swap(draw: st.DrawFn, folder: Path, path: Path) -> None:
    """Exchange two files."""
    other = draw(st.sampled_from(sorted(p for p in folder.iterdir() if p != path)))
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def stale(draw: st.DrawFn, folder: Path, path: Path) -> None:
    """Take the file from the checkpoint before."""
    shutil.copy(folder.parent / "step-00000001" / path.name, path)


def extra_file(draw: st.DrawFn, folder: Path, path: Path) -> None:
    """Add a file."""
    name = draw(st.sampled_from(["ema.safetensors", "x", ".hidden", f"{path.name}.bak"]))
    (folder / name).write_bytes(draw(st.binary(max_size=9)))


def extra_key(draw: st.DrawFn, folder: Path, path: Path) -> None:
    """Add a key to a JSON file."""
    path = folder / draw(st.sampled_from(["MANIFEST.json", "state.json"]))
    content = json.loads(path.read_bytes())
    content[draw(st.sampled_from(["planet", "zzz", ""]))] = draw(st.integers())
    path.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")


def newer_schema(draw: st.DrawFn, folder: Path, path: Path) -> None:
    """Say another schema, with a seal that is right."""
    content = json.loads((folder / manifest.NAME).read_bytes())
    del content["digest"]
    content["schema_version"] = draw(st.integers().filter(lambda n: n != manifest.SCHEMA))
    (folder / manifest.NAME).write_bytes(manifest._sealed(content))


MUTANTS = [
    flip, truncate, append, zero, remove, swap, stale, extra_file, extra_key, newer_schema,
]  # fmt: skip


@st.composite
def damages(draw: st.DrawFn) -> Callable[[Path], str]:
    """Draw a way to damage a checkpoint; it returns what it did."""
    name = draw(
        st.sampled_from(
            ["MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json"]
        )
    )
    mutate = draw(st.sampled_from(MUTANTS))

    def damage(folder: Path) -> str:
        mutate(draw, folder, folder / name)
        return f"{mutate.__name__} {name}"

    return damage


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("intact")
    save(folder, 1, 30)
    save(folder, 2, 30)
    return folder


@pytest.mark.slow
@settings(
    max_examples=MUTATIONS,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(damage=damages())
def test_no_damage_loads_silently_and_the_checkpoint_before_is_used(
    tmp_path: Path, intact: Path, damage: Callable[[Path], str]
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(intact, folder)
    damage(folder / "step-00000002")
    checkpoints = Checkpoints(folder, 2)
    with pytest.raises(CheckpointError):
        checkpoints.load(folder / "step-00000002")
    assert checkpoints.latest() == folder / "step-00000001"
    shutil.rmtree(folder / "step-00000001")
    with pytest.raises(CheckpointError, match="step-00000002"):
        checkpoints.latest()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MANIFEST.json", "model.safetensors", "state.json"])
def test_no_flipped_bit_of_a_file_goes_unseen(tmp_path: Path, name: str) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    path = checkpoints.save(1, {"model": {"w": torch.ones(2)}}, {"step": 1})
    whole = (path / name).read_bytes()
    for bit in range(0, 8 * len(whole), BITS_APART):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(data)
        with pytest.raises(CheckpointError):
            checkpoints.load(path)
    (path / name).write_bytes(whole)
    checkpoints.load(path)


@both_ways
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_byte_of_the_tensors_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, behind: bool
) -> None:
    save(tmp_path, 1)
    for k in range(0, 1500, 97):

        def torn(path: Path, content: Iterator[memoryview], k: int = k) -> None:
            path.write_bytes(b"".join(content)[:k])
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(checkpoint_draft, "stream", torn)
        with pytest.raises(ResourceError, match=r"no space left in .*: need 2\.4 KiB, have"):
            save(tmp_path, 2, behind=behind)
        assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert newest(tmp_path) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_at_any_byte_of_the_json_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, number: int
) -> None:
    save(tmp_path, 1)
    write = files.write_synced
    for k in range(0, 600, 50):
        calls: list[Path] = []

        def torn(path: Path, data: bytes, k: int = k, calls: list[Path] = calls) -> None:
            calls.append(path)
            if len(calls) < failing:
                return write(path, data)
            path.write_bytes(data[:k])
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("dira_core.checkpoint.write_synced", torn)
        monkeypatch.setattr(manifest, "write_synced", torn)
        with pytest.raises(ResourceError, match="the checkpoint before is intact"):
            save(tmp_path, 2)
        assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert newest(tmp_path) == 1


@both_ways
def test_on_a_disk_with_any_space_left_a_save_is_whole_or_undone(
    tmp_path: Path, behind: bool
) -> None:
    def work() -> None:
        folder, ballast = tmp_path / "checkpoints", tmp_path / "ballast"
        refused = 0
        save(folder, 1, 10_000)
        for step, pages in enumerate(range(36), 2):
            ballast.write_bytes(b"x" * (free_bytes(tmp_path) - 4096 * pages))
            error = refusal(folder, step, 10_000, behind=behind)
            refused += bool(error)
            assert not error or error.startswith(f"no space left in {folder}: need 78.")
            assert (newest(folder) == step) == (not error)
            ballast.unlink()
        assert 20 <= refused <= 30
        save(folder, 100, 10_000)
        assert newest(folder) == 100

    on_small_disk(tmp_path, "size=1m", work)


@both_ways
def test_without_a_free_inode_a_save_is_undone_and_says_so(tmp_path: Path, behind: bool) -> None:
    def work() -> None:
        save(tmp_path / "checkpoints", 1)
        for n in range(100):
            try:
                (tmp_path / str(n)).touch()
            except OSError:
                break
        for free in range(5):
            error = refusal(tmp_path / "checkpoints", 2, 30, behind=behind)
            assert error.startswith("no space left")
            assert free or "have no free inode" in error
            assert newest(tmp_path / "checkpoints") == 1
            (tmp_path / str(free)).unlink()
        assert not refusal(tmp_path / "checkpoints", 2, 30, behind=behind)
        assert newest(tmp_path / "checkpoints") == 2

    on_small_disk(tmp_path, "size=1m,nr_inodes=30", work)


@both_ways
def test_a_disk_that_became_read_only_is_named_and_loses_nothing(
    tmp_path: Path, behind: bool
) -> None:
    def work() -> None:
        folder = tmp_path / "checkpoints"
        save(folder, 1, behind=behind)
        remount(tmp_path, read_only=True)
        with pytest.raises(RunFolderError, match=r"cannot write in .* \(Read-only file system\)"):
            save(folder, 2, behind=behind)
        remount(tmp_path, read_only=False)
        save(folder, 3, behind=behind)
        assert newest(folder) == 3

    on_small_disk(tmp_path, "size=1m", work)


@both_ways
@pytest.mark.parametrize("lost", ["draft", "folder"])
def test_what_is_deleted_during_a_save_is_an_error_and_the_next_save_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str, behind: bool
) -> None:
    folder, write = tmp_path / "checkpoints", checkpoint_draft.stream
    save(folder, 1, behind=behind)
    with monkeypatch.context() as patch:

        def deleting(path: Path, content: Iterator[memoryview]) -> Entry:
            entry = write(path, content)
            shutil.rmtree(path.parent if lost == "draft" else folder)
            return entry

        patch.setattr(checkpoint_draft, "stream", deleting)
        with pytest.raises(
            RunFolderError, match=r"cannot write in .* \(No such file or directory\)"
        ):
            save(folder, 2, behind=behind)
    save(folder, 3, behind=behind)
    assert newest(folder) == 3
    assert (folder / "step-00000001").exists() == (lost == "draft")


@both_ways
@pytest.mark.parametrize("kind", ["file", "loop"])
def test_a_place_that_is_no_folder_is_named(tmp_path: Path, kind: str, behind: bool) -> None:
    odd = tmp_path / "checkpoints"
    odd.symlink_to(odd) if kind == "loop" else odd.write_text("x")
    with pytest.raises(RunFolderError, match=r"cannot write in .*/checkpoints \("):
        save(odd, 1, behind=behind)
