"""Checkpoints that processes write in pieces (FSDP2): whole on any number, or not at all."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from crew import ended
from torch import Tensor, nn

from dira_core.checkpoint import Checkpoints
from dira_core.errors import CheckpointError, PeerError
from dira_core.files import Failpoints
from dira_core.parallel import Sharded, wrapped
from dira_core.saving import Saver
from dira_core.shards import like

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def network(step: int) -> nn.Module:
    """Return a module whose weights say which step they belong to; rows do not divide by 2 or 3."""
    torch.manual_seed(step)
    return nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Linear(7, 1))


def save(folder: Path, step: int, patience_s: float = 20, *, behind: bool = False) -> None:
    """Save, in each process that calls it, its pieces of the network of a step."""
    module = wrapped(network(step), Sharded()).module
    saver = Saver(Checkpoints(folder, 3), background=behind, patience_s=patience_s)
    saver.save(step, {"model": module.state_dict()}, {"step": step})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(-99)
    saver.wait()


def saved(tmp_path: Path, processes: int, *steps: int) -> Path:
    """Return a folder of sharded checkpoints."""
    folder = tmp_path / "checkpoints"
    for step in steps:
        work = tmp_path / f"saves-{step}"
        left = ended(work, lambda rank, step=step: save(folder, step), processes)
        assert [each.code for each in left] == [0] * processes, left
    return folder


def newest(folder: Path) -> tuple[int, dict[str, Tensor]]:
    """Return the step and the tensors of the newest checkpoint that can be trusted."""
    checkpoints = Checkpoints(folder, 3)
    checkpoints.sweep()
    path = checkpoints.latest()
    assert path is not None
    tensors, state = checkpoints.load(path)
    return state["step"], dict(tensors["model"])


def assert_whole(folder: Path, step: int) -> None:
    found, tensors = newest(folder)
    assert found == step
    torch.testing.assert_close(tensors, dict(network(step).state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("behind", [False, True])
def test_pieces_of_any_number_of_processes_become_one_whole(
    tmp_path: Path, processes: int, behind: bool
) -> None:
    folder = tmp_path / "checkpoints"
    ended(tmp_path / "crew", lambda rank: save(folder, 5, behind=behind), processes)
    names = {path.name for path in (folder / "step-00000005").iterdir()}
    assert {f"model.rank-{rank:05d}.safetensors" for rank in range(processes)} <= names
    assert_whole(folder, 5)


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
def test_other_processes_take_their_rows_of_it(tmp_path: Path, before: int, after: int) -> None:
    folder = saved(tmp_path, before, 5)

    def work(rank: int) -> None:
        module = wrapped(network(1), Sharded()).module
        own = module.state_dict()
        _, tensors = newest(folder)
        module.load_state_dict({name: like(whole, own[name]) for name, whole in tensors.items()})
        for name, tensor in wrapped(network(5), Sharded()).module.state_dict().items():
            local = [getattr(t, "to_local", lambda t=t: t)() for t in (tensor, own[name])]
            assert torch.equal(*local), name

    left = ended(tmp_path / "loads", work, after)
    assert [each.code for each in left] == [0] * after, left


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "index"])
def test_a_damaged_piece_makes_the_checkpoint_before_count(tmp_path: Path, damage: str) -> None:
    folder = saved(tmp_path, 2, 4, 5)
    piece = folder / "step-00000005/model.rank-00001.safetensors"
    data = bytearray(piece.read_bytes())
    if damage == "missing":
        piece.unlink()
    elif damage == "short":
        piece.write_bytes(data[:-1])
    elif damage == "flipped":
        data[-1] ^= 1
        piece.write_bytes(data)
    else:
        next(piece.parent.glob("*shard*")).unlink()
    assert_whole(folder, 4)


def test_where_every_piece_is_damaged_nothing_is_made_up(tmp_path: Path) -> None:
    folder = saved(tmp_path, 2, 5)
    (folder / "step-00000005/model.rank-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match="can be trusted"):
        newest(folder)


@pytest.mark.parametrize(
    ("victim", "point"),
    [
        (1, "file.after_write"),
        (1, "ckpt.after_data"),
        (0, "ckpt.after_data"),
        (0, "ckpt.after_manifest"),
    ],
)
def test_a_process_killed_while_they_save_leaves_the_checkpoint_before(
    tmp_path: Path, victim: int, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path, 2, 4)

    def work(rank: int) -> None:
        if rank == victim:
            plan = Failpoints(f"{point}:kill@1")
            monkeypatch.setattr("dira_core.files.planned", lambda: plan)
        save(folder, 5, patience_s=0.5)
        os._exit(0)  # do not wait for the dead one

    left = ended(tmp_path / "crew", work)
    assert left[victim].code == -signal.SIGKILL
    assert left[1 - victim].code == (PeerError.exit_code if victim else 0)
    assert_whole(folder, 4)
    again = ended(tmp_path / "again", lambda rank: save(folder, 6))
    assert [each.code for each in again] == [0, 0]
    assert_whole(folder, 6)
