"""Checkpoints that say which step they belong to, children that are killed, and small disks."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parts import forked
from torch import Tensor

from dira_core import checkpoint_manifest as manifest
from dira_core import files
from dira_core.checkpoint import Checkpoints
from dira_core.errors import ResourceError
from dira_core.files import Failpoints
from dira_core.saving import Saver

NOT_PERMITTED = 77


def tensors_of(step: int, n: int = 300) -> dict[str, dict[str, Tensor]]:
    """Return tensors that say which step they belong to."""
    return {
        "model": {"weight": torch.full((n,), float(step)), "step": torch.tensor(step)},
        "optimizer": {"momentum": torch.full((n,), -float(step))},
    }


def save(folder: Path, step: int, n: int = 300, *, behind: bool = False) -> None:
    """Save the checkpoint of a step while training goes on, if asked; the last two are kept."""
    saver, tensors = Saver(Checkpoints(folder, 2), background=behind), tensors_of(step, n)
    saver.save(step, tensors, {"step": step})
    for group in tensors.values():
        for tensor in group.values():
            tensor.fill_(-99)
    saver.wait()


def newest(folder: Path) -> int:
    """Return the step of the newest checkpoint; every value in it must belong to that step."""
    checkpoints = Checkpoints(folder, 2)
    checkpoints.sweep()
    path = checkpoints.latest()
    assert path is not None
    tensors, state = checkpoints.load(path)
    step: int = state["step"]
    expected = tensors_of(step, len(tensors["model"]["weight"]))
    for stem, group in expected.items():
        assert group.keys() == tensors[stem].keys()
        assert all(torch.equal(tensors[stem][name], value) for name, value in group.items())
    assert path.name == manifest.folder_name(step)
    assert all(p.name.startswith("step-") for p in folder.iterdir())
    return step


def ended(work: Callable[[], None]) -> int:
    """Run `work` in a child process; return how that ended, as `subprocess` does."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])


def planned(monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    """Make this process (and what it forks) meet these failpoints."""
    failpoints = Failpoints(plan)
    monkeypatch.setattr(files, "planned", lambda: failpoints)


def mount_tmpfs(folder: Path, options: str) -> None:
    """Mount a small disk that only this process and its children see."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, private, recursive = 0x20000, 0x40000, 0x4000
    if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, private | recursive, None):
        os._exit(NOT_PERMITTED)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, options.encode()):
        os._exit(NOT_PERMITTED)


def remount(folder: Path, *, read_only: bool) -> None:
    """Change whether a small disk can be written to."""
    flags = 0x20 | (0x1 if read_only else 0)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"none", bytes(folder), None, flags, None) == 0


def free_bytes(folder: Path) -> int:
    """Return what is left on a disk."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def refusal(folder: Path, step: int, n: int, *, behind: bool = False) -> str:
    """Save; return why that was refused for want of space, or an empty string."""
    try:
        save(folder, step, n, behind=behind)
    except ResourceError as error:
        return str(error)
    return ""


def on_small_disk(folder: Path, options: str, work: Callable[[], None]) -> None:
    """Run `work` in a process that has a tmpfs at `folder`; skip where that is not permitted."""

    def mounted() -> None:
        mount_tmpfs(folder, options)
        work()

    code = ended(mounted)
    if code == NOT_PERMITTED:
        pytest.skip("mounting a tmpfs is not permitted here; the torn writers above cover it")
    assert code == 0
