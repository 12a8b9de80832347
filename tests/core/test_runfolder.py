"""One owner of a run folder, a status that is the truth."""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dira_core import files, runfolder
from dira_core.errors import ResourceError, RunFolderError
from dira_core.lock import Lock
from dira_core.runfolder import RunFolder, new_run_folder

# Newer Pythons warn of any fork in a process that has threads; these children only own and wait.
pytestmark = pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")


@contextmanager
def owner_of(folder: Path, *, with_worker: bool = False) -> Iterator[int]:
    """Fork a process that owns a run folder, and perhaps a worker of it; yield the owner's pid."""
    listen, tell = os.pipe()
    owner = os.fork()
    if owner == 0:
        os.setpgid(0, 0)
        with RunFolder(folder):
            if with_worker and os.fork() > 0:
                time.sleep(60)
            os.write(tell, b"!")
            time.sleep(60)
        os._exit(0)
    os.close(tell)
    assert os.read(listen, 1) == b"!"
    try:
        yield owner
    finally:
        os.killpg(owner, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(owner, 0)
        os.close(listen)


def test_a_new_folder_is_made_and_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    with RunFolder(path) as folder:
        folder.write_recipe("seed = 3\n")
        folder.status("running", step=4)
        assert folder.read_status() == "running"
    assert (path / "recipe.toml").read_text() == "seed = 3\n"
    assert RunFolder(path).report() == {
        "status": "running",
        "reason": "",
        "step": 4,
        "resume": f"dira run --resume {path}",
    }


def test_the_resume_command_survives_a_shell_and_done_has_none(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "my run") as folder:
        folder.status("failed", "before there was anything to resume")
        assert "resume" not in folder.report()
        folder.write_recipe("seed = 0")
        folder.status("preempted", "SIGTERM")
        assert folder.report()["resume"] == f"dira run --resume '{tmp_path}/my run'"
        folder.status("done", loss=float("nan"))
        assert folder.report() == {"status": "done", "reason": "", "loss": None}


def test_a_folder_without_status_reads_as_nothing(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).report() == {}
    assert RunFolder(tmp_path).read_status() == ""


def test_a_damaged_status_is_named(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"status": ')
    with pytest.raises(RunFolderError, match=rf"{tmp_path}/status\.json is damaged"):
        RunFolder(tmp_path).report()


def test_a_damaged_status_of_another_run_is_found_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(runfolder.JOB, "4711")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "status.json").write_text('{"status": ')
    with pytest.raises(RunFolderError, match=rf"{tmp_path}/other/status\.json is damaged"):
        runfolder.run_of_job(tmp_path)


def test_a_second_process_is_refused_by_pid_and_host_until_the_owner_dies(tmp_path: Path) -> None:
    with owner_of(tmp_path) as owner:
        message = f"in use by pid {owner} on {socket.gethostname()}"
        with pytest.raises(RunFolderError, match=message):
            RunFolder(tmp_path).__enter__()
    with RunFolder(tmp_path):
        pass


def test_a_worker_that_outlives_its_killed_owner_does_not_hold_the_folder(tmp_path: Path) -> None:
    with owner_of(tmp_path, with_worker=True) as owner:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        os.killpg(owner, 0)  # raises if no worker is left
        with RunFolder(tmp_path):
            pass


def test_a_fork_does_not_release_the_folder_of_its_parent(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        child = os.fork()
        if child == 0:
            folder.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(RunFolderError, match="in use"), RunFolder(tmp_path):
            pass


def test_a_lock_that_was_released_is_kept_by_nobody(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    lock.take()
    lock.release()
    left = weakref.ref(lock)
    del lock
    assert left() is None


def test_one_process_cannot_own_a_folder_twice_at_a_time(tmp_path: Path) -> None:
    with RunFolder(tmp_path):
        with pytest.raises(RunFolderError, match=f"pid {os.getpid()}"), RunFolder(tmp_path):
            pass
        with pytest.raises(RunFolderError, match=f"pid {os.getpid()}"), RunFolder(tmp_path):
            pass


def test_a_disk_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with RunFolder(tmp_path):
        assert "no locks on this disk" in caplog.text


def test_foreign_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scan.dcm").write_text("x")
    with pytest.raises(RunFolderError, match="1 files or folders that are not a run") as caught:
        RunFolder(tmp_path).__enter__()
    assert "scan" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.dcm"]


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder(tmp_path / "a").__enter__()


@pytest.mark.parametrize(
    ("status", "way_out"), [("running", "--resume"), ("preempted", "--resume"), ("done", "--out")]
)
def test_a_run_is_not_overwritten(tmp_path: Path, status: runfolder.Status, way_out: str) -> None:
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("")
        folder.status(status)
    with pytest.raises(RunFolderError, match=way_out):
        RunFolder(tmp_path).__enter__()
    with RunFolder(tmp_path, resume=True) as folder:
        assert folder.read_status() == status


def test_a_refused_folder_is_not_locked(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.status("running")
    for _ in range(2):
        with pytest.raises(RunFolderError, match="unfinished"):
            RunFolder(tmp_path).__enter__()


def test_resuming_what_is_not_there_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nothing to resume"):
        RunFolder(tmp_path / "a", resume=True).__enter__()
    assert not (tmp_path / "a").exists()


def test_a_folder_killed_before_its_first_file_was_whole_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "run.lock").touch()
    torn = tmp_path / f".recipe.toml.{'0' * 32}.tmp"
    torn.write_text("see")
    with RunFolder(tmp_path) as folder:
        assert not torn.exists()
        folder.write_recipe("seed = 1")


def test_a_moved_run_folder_resumes(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a") as folder:
        folder.write_recipe("")
    (tmp_path / "a").rename(tmp_path / "b")
    with RunFolder(tmp_path / "b", resume=True) as folder:
        folder.status("running")
        assert folder.report()["resume"].endswith("/b")


def test_entering_sweeps_what_killed_saves_left(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("")
    left = [tmp_path / "checkpoints" / name for name in (".tmp-step-1-ab", ".trash-step-1-ab")]
    for path in left:
        path.mkdir(parents=True)
        (path / "model.safetensors").touch()
    with RunFolder(tmp_path, resume=True) as folder:
        assert not any(path.exists() for path in left)
        assert folder.checkpoints.latest() is None


def test_the_environment_names_versions_and_neither_person_nor_machine(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.write_environment()
    text = (tmp_path / "environment.json").read_text()
    environment = json.loads(text)
    assert environment["threads"] == 1
    assert {"python", "dira", "torch", "plugins", "platform", "device"} <= environment.keys()
    assert f'"{getpass.getuser()}"' not in text
    assert socket.gethostname() not in text
    assert os.getcwd() not in text
    assert str(Path.home()) not in text


def test_another_environment_on_resume_is_a_warning_that_names_what_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunFolder(tmp_path) as folder:
        folder.write_environment()
        folder.write_environment()
        assert not caplog.text
        path = tmp_path / "environment.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"threads": 7}))
        folder.write_environment()
    assert "threads 7 -> 1" in caplog.text


def test_a_status_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with RunFolder(tmp_path) as folder:
        folder.status("running")
        monkeypatch.setattr(files, "sync", full)
        folder.status("failed", "no space")
        assert folder.read_status() == "running"
    assert "no space left in" in caplog.text


def test_names_of_runs_are_safe_and_counted(tmp_path: Path) -> None:
    recipe = "simsiam-unet-patchgan-phantom"
    made = [new_run_folder(tmp_path / "runs", None, recipe) for _ in range(3)]
    assert [path.name for path in made] == [recipe, f"{recipe}-2", f"{recipe}-3"]
    assert all(path.is_dir() for path in made)
    with RunFolder(made[2]):
        pass


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc", "etc"),
        ("a b/c\nd", "a-b-c-d"),
        ("..", "run"),
        ("", "fallback"),
        ("x" * 300, "x" * 100),
        ("<script>", "script"),
        ("Röntgen 影像", "Röntgen-影像"),
        ("影" * 300, "影" * 33),
        ("-rf", "rf"),
    ],
)
def test_a_name_cannot_leave_the_root(tmp_path: Path, name: str, safe: str) -> None:
    assert new_run_folder(tmp_path, name, "fallback") == tmp_path / safe


def test_write_atomic_keeps_the_old_bytes_when_the_disk_is_full_at_any_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.json"
    files.write_atomic(path, b"old")
    for k in range(0, 200, 7):

        def full(aside: Path, data: bytes, k: int = k) -> None:
            with aside.open("wb") as file:
                file.write(data[:k])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(ResourceError, match=r"no space left in .*: need 0\.2 KiB, have .*iB"):
            files.write_atomic(path, b"n" * 200)
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_write_atomic_waits_for_the_data_before_the_name_and_then_for_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(file: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{file}") else "file")
        fsync(file)

    def noted_replace(old: Path, new: Path) -> None:
        assert Path(old).parent == Path(new).parent
        done.append("replace")
        replace(old, new)

    monkeypatch.setattr("os.fsync", noted_fsync)
    monkeypatch.setattr("os.replace", noted_replace)
    files.write_atomic(tmp_path / "a", b"x")
    assert done == ["file", "replace", "folder"]


def test_a_quota_and_the_rights_are_told_from_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="have a full quota"), files.writing(tmp_path, 1):
        raise OSError(122, "Disk quota exceeded")
    with pytest.raises(RunFolderError, match="Permission denied"), files.writing(tmp_path, 1):
        raise PermissionError(13, "Permission denied")
