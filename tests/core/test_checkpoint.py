"""A checkpoint comes back bit for bit, or says why not."""

from __future__ import annotations

import copy
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dira_core import checkpoint_manifest as manifest
from dira_core.checkpoint import Checkpoints
from dira_core.errors import CheckpointError, RunFolderError
from dira_core.optimizer_state import flatten_optimizer, unflatten_optimizer


def tensors_of(step: int) -> dict[str, dict[str, Tensor]]:
    """Return tensors that say which step they belong to."""
    return {
        "model": {"a.weight": torch.full((2, 3), float(step)), "b": torch.tensor(step)},
        "optimizer": {"a.weight": torch.arange(4, dtype=torch.int32) + step},
    }


def save_steps(folder: Path, *steps: int, keep: int = 9) -> Checkpoints:
    """Save checkpoints of these steps."""
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, tensors_of(step), {"step": step})
    return checkpoints


def reseal(folder: Path, **changes: object) -> None:
    """Forge a manifest that fits the files of a checkpoint, as an attacker could."""
    path = folder / manifest.NAME
    content = json.loads(path.read_bytes())
    for name in content["files"]:
        content["files"][name] = manifest.Entry.of((folder / name).read_bytes()).model_dump()
    content |= changes
    del content["digest"]
    path.write_bytes(manifest._sealed(content))


def bits(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor: NaN equals NaN, and 0 is not -0."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def names(folder: Path) -> list[str]:
    """Return what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_tensors_and_state_come_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    types = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
    group = {str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in types}
    group["nan"] = torch.tensor([float("nan"), -0.0, float("inf")])
    group["scalar"] = torch.tensor(7)
    group["empty"] = torch.zeros(0, 4)
    state = {"f": 0.1 + 0.2, "none": None, "nested": {"list": [1, True, "ä"]}, "inf": float("inf")}
    checkpoints = Checkpoints(tmp_path, 2)
    path = checkpoints.save(1200, {"model": group, "optimizer": {}}, state)
    tensors, read = checkpoints.load(path)
    assert path == tmp_path / "step-00001200"
    assert names(path) == [
        "MANIFEST.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert read == state
    assert tensors["optimizer"] == {}
    assert tensors["model"].keys() == group.keys()
    for name, tensor in group.items():
        loaded = tensors["model"][name]
        assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
        assert bits(loaded) == bits(tensor)


def test_views_tied_and_channels_last_tensors_come_back_by_value(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(1, 2, 3, 4)
    group = {
        "base": base,
        "tied": base,
        "slice": base[:, 1],
        "transposed": base.transpose(1, 3),
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "expanded": torch.ones(1).expand(5),
        "parameter": nn.Parameter(base),
    }
    checkpoints = Checkpoints(tmp_path, 2)
    loaded = checkpoints.load(checkpoints.save(1, {"model": group}, {}))[0]["model"]
    assert loaded.keys() == group.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in group.items())
    assert base.is_contiguous()
    loaded["tied"].zero_()
    assert torch.equal(loaded["base"], base)


@pytest.mark.parametrize("state", [{"a": (1, 2)}, {"a": {1: 2}}, {"a": torch.ones(1)}, {"a": {1}}])
def test_a_state_that_json_would_change_is_refused(
    tmp_path: Path, state: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Checkpoints(tmp_path, 2).save(1, {}, state)
    assert names(tmp_path) == []


def test_the_manifest_says_step_versions_and_files(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, 2).save(3, tensors_of(3), {})
    read = manifest.verify(path)
    assert (read.schema_version, read.step) == (1, 3)
    assert read.versions["torch"] == str(torch.__version__)
    assert read.files.keys() == {"model.safetensors", "optimizer.safetensors", "state.json"}


def test_no_checkpoint_yet_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "checkpoints", 2).latest() is None


def test_the_newest_are_kept_and_the_latest_is_the_highest_step(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1, 5, 20, 100, keep=2)
    assert names(tmp_path) == ["step-00000020", "step-00000100"]
    assert checkpoints.latest() == tmp_path / "step-00000100"


def test_steps_beyond_eight_digits_are_ordered_by_number(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 99_999_999, 100_000_000, keep=2)
    assert checkpoints.latest() == tmp_path / "step-100000000"


def test_saving_never_deletes_what_was_just_saved(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20, 30)
    assert save_steps(tmp_path, 5, keep=2).latest() == tmp_path / "step-00000030"
    assert names(tmp_path)[0] == "step-00000005"


def test_fewer_than_two_are_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Checkpoints(tmp_path, 1)


def test_a_checkpoint_that_verifies_is_left_as_it_is(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1)
    before = (tmp_path / "step-00000001" / manifest.NAME).stat()
    path = checkpoints.save(1, tensors_of(2), {})
    assert (path / manifest.NAME).stat() == before
    assert torch.equal(checkpoints.load(path)[0]["model"]["b"], torch.tensor(1))


def test_a_damaged_one_of_the_same_step_makes_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = save_steps(tmp_path, 1)
    (tmp_path / "step-00000001" / "state.json").write_text("{}")
    assert checkpoints.load(checkpoints.save(1, tensors_of(1), {"step": 1}))[1] == {"step": 1}
    assert names(tmp_path) == ["damaged-step-00000001", "step-00000001"]
    assert "state.json has 2 bytes" in caplog.text


def test_a_damaged_one_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "model.safetensors").unlink()
    assert checkpoints.latest() == tmp_path / "step-00000001"
    assert "step-00000002: model.safetensors missing; put aside as damaged-" in caplog.text
    assert names(tmp_path) == ["damaged-step-00000002", "step-00000001"]


def test_none_left_is_an_error_that_lists_each_reason_also_the_second_time(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000001" / "more.txt").touch()
    (tmp_path / "step-00000002" / manifest.NAME).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CheckpointError) as caught:
            checkpoints.latest()
        assert r"step-00000001: 1 more files than the manifest names" in str(caught.value)
        assert r"step-00000002: MANIFEST.json is damaged: no JSON" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_damaged_one_put_right_is_told_its_name(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1)
    (tmp_path / "step-00000001").rename(tmp_path / "damaged-step-00000001")
    with pytest.raises(CheckpointError, match="its name should be step-00000001; rename it"):
        checkpoints.latest()


@pytest.mark.parametrize("kind", ["file", "loop", "fifo"])
def test_what_is_no_folder_of_files_is_put_aside(tmp_path: Path, kind: str) -> None:
    checkpoints = save_steps(tmp_path, 1, 3)
    odd = tmp_path / "step-00000002"
    if kind == "file":
        odd.write_text("x")
    elif kind == "loop":
        odd.symlink_to(odd)
    else:
        odd = tmp_path / "step-00000003" / "state.json"
        odd.unlink()
        os.mkfifo(odd)
    for path in tmp_path.glob("step-00000003/model.safetensors"):
        path.write_bytes(b"")
    assert checkpoints.latest() == tmp_path / "step-00000001"


def test_a_folder_that_cannot_be_listed_is_an_error_not_a_fresh_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        Checkpoints(tmp_path, 2).latest()


def test_where_nothing_can_be_renamed_damaged_ones_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(30, "Read-only file system")

    checkpoints = save_steps(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "state.json").unlink()
    monkeypatch.setattr(Path, "rename", refuse)
    assert checkpoints.latest() == tmp_path / "step-00000001"
    assert "passed over, it cannot be renamed (Read-only file system)" in caplog.text


def test_a_failed_delete_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(16, "Device or resource busy")

    checkpoints = save_steps(tmp_path, 1, 2, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuse)
        checkpoints.save(3, tensors_of(3), {})
    assert "Device or resource busy" in caplog.text
    assert names(tmp_path)[1:] == ["step-00000002", "step-00000003"]
    checkpoints.sweep()
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_a_folder_deleted_while_running_is_made_again_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = save_steps(tmp_path / "c", 1)
    assert not caplog.text
    (tmp_path / "c").rename(tmp_path / "d")
    checkpoints.save(2, tensors_of(2), {})
    assert "vanished" in caplog.text
    assert checkpoints.latest() == tmp_path / "c" / "step-00000002"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file")
    with pytest.raises(RunFolderError, match=r"cannot write in .*/c \(File exists\)"):
        Checkpoints(tmp_path / "c", 2).save(1, tensors_of(1), {})


def test_a_newer_schema_is_told_from_damage(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1)
    reseal(tmp_path / "step-00000001", schema_version=2, planet="Mars")
    with pytest.raises(CheckpointError, match="written in schema 2, this dira reads 1"):
        checkpoints.load(tmp_path / "step-00000001")


def doubled_name(folder: Path) -> None:
    """Name a tensor twice in the header; the library reads such a file."""
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},' * 2
    header = header[:-1].replace(b"},{", b"},") + b"}"
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\1")


def huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")


def overlap(folder: Path) -> None:
    header = json.dumps(
        {k: {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} for k in "ab"}
    ).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"12")


def nested(folder: Path) -> None:
    (folder / "state.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")


def doubled_key(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": 1, "step": 2}')


def no_object(folder: Path) -> None:
    (folder / "state.json").write_text("[1]")


def no_text(folder: Path) -> None:
    (folder / "state.json").write_bytes(b'{"a": "\xff"}')


@pytest.mark.parametrize(
    "forge", [doubled_name, huge_header, overlap, nested, doubled_key, no_object, no_text]
)
def test_what_has_the_right_digests_is_still_read_strictly(
    tmp_path: Path, forge: Callable[[Path], None]
) -> None:
    checkpoints = save_steps(tmp_path, 1)
    forge(tmp_path / "step-00000001")
    reseal(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match="step-00000001"):
        checkpoints.load(tmp_path / "step-00000001")


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"state.json": {"size": "3", "sha256": ""}}},
        {"files": {"../../etc/passwd": {"size": 3, "sha256": ""}}},
        {"files": {}},
        {"files": []},
        {"step": -1},
        {"step": 2},
        {"schema_version": None},
        {"planet": "Mars"},
    ],
)
def test_a_forged_manifest_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    checkpoints = save_steps(tmp_path, 1)
    reseal(tmp_path / "step-00000001", **changes)
    with pytest.raises(CheckpointError):
        checkpoints.load(tmp_path / "step-00000001")


def test_the_doubled_name_of_this_suite_is_one_the_library_reads(tmp_path: Path) -> None:
    doubled_name(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["a"].item() == 1


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, bias=False))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()


OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.9), amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_for_bit_through_files(tmp_path: Path, name: str) -> None:
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, optimizer, range(3))
    tensors, rest = flatten_optimizer(optimizer.state_dict())
    checkpoints = Checkpoints(tmp_path, 2)
    held = {"model": net.state_dict(), "optimizer": tensors}
    path = checkpoints.save(3, held, {"optimizer": rest})
    loaded, state = checkpoints.load(path)

    train(net, optimizer, range(3, 6))
    resumed = network()
    resumed.load_state_dict(loaded["model"])
    again = OPTIMIZERS[name](resumed.parameters())
    again.load_state_dict(unflatten_optimizer(loaded["optimizer"], state["optimizer"]))
    train(resumed, again, range(3, 6))

    torch.testing.assert_close(resumed.state_dict(), net.state_dict(), rtol=0, atol=0)
    mine, other = (flatten_optimizer(o.state_dict()) for o in (optimizer, again))
    torch.testing.assert_close(mine[0], other[0], rtol=0, atol=0)
    assert mine[1] == other[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_an_optimizer_state_survives_json_exactly(name: str, steps: int) -> None:
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, optimizer, range(steps))
    before = copy.deepcopy(optimizer.state_dict())
    tensors, rest = flatten_optimizer(optimizer.state_dict())
    after = unflatten_optimizer(tensors, json.loads(json.dumps(rest)))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert repr(after) == repr(before)  # keys are integers again, betas a tuple


def test_optimizer_tensors_too_few_or_too_many_are_errors() -> None:
    net = network()
    optimizer = OPTIMIZERS["adam"](net.parameters())
    train(net, optimizer, range(1))
    tensors, rest = flatten_optimizer(optimizer.state_dict())
    with pytest.raises(ValueError, match="belong nowhere: more"):
        unflatten_optimizer({**tensors, "more": torch.ones(1)}, rest)
    tensors.pop("state/0/exp_avg")
    with pytest.raises(KeyError, match="state/0/exp_avg"):
        unflatten_optimizer(tensors, rest)


def test_what_is_on_disk_is_plain_safetensors(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, 2).save(1, tensors_of(1), {})
    assert (path / "model.safetensors").read_bytes() == save(tensors_of(1)["model"])
