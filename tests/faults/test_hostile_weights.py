"""Files made to harm: no load path runs their code, or prints their escapes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parts import small_run

import dira_core
from dira_core import checkpoint_manifest
from dira_core.build import build_trio
from dira_core.checkpoint import Checkpoints
from dira_core.errors import CheckpointError, DiraError
from dira_core.exports import export
from dira_core.imports import import_weights
from dira_core.layering import Layer
from dira_core.resolving import resolve
from dira_core.weightfiles import read_weights

pytestmark = pytest.mark.faults


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def saved(content: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def plain_pickle(canary: Path) -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved({"a": Trap(canary)}))) as archive:
        [name] = [n for n in archive.namelist() if n.endswith("data.pkl")]
        return archive.read(name)


def array_of_objects(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def arrays_of_objects(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([Trap(canary)], dtype=object))
    return buffer.getvalue()


def old_tar(canary: Path) -> bytes:
    """Return what torch 0.1 wrote: a tar of pickles."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = plain_pickle(canary)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def disguised(canary: Path) -> bytes:
    """Return a pickle with the first nine bytes of a safetensors file."""
    return struct.pack("<Q", 2) + b"{}" + plain_pickle(canary)


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "zip of torch": lambda canary: saved({"state_dict": {"w": torch.ones(1)}, "x": Trap(canary)}),
    "as a tensor": lambda canary: saved({"encoder.conv1.weight": Trap(canary)}),
    "as a name": lambda canary: saved({Path("/x"): torch.ones(1), "y": Trap(canary)}),
    "old torch": lambda canary: saved({"x": Trap(canary)}, zipped=False),
    "older torch": old_tar,
    "pickle": plain_pickle,
    "pickle in gzip": lambda canary: gzip.compress(plain_pickle(canary)),
    "joblib": lambda canary: zlib.compress(plain_pickle(canary)),
    "numpy": array_of_objects,
    "numpy archive": arrays_of_objects,
    "disguised": disguised,
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run."""
    folder = tmp_path_factory.mktemp("victim") / "run"
    small_run(folder, train={"epochs": 1})
    return folder


def load_paths(folder: Path, out: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield everything that reads a file of weights, run folder or checkpoint."""
    file = folder / "a.pt"
    values = {"data": "phantom", "backbone": "resnet18", "init": str(file)}
    parts = {"discriminator": "none", "restorer": "unet", "views": {"size": 32}}
    yield "load", lambda: dira_core.load(file)
    yield "load a run", lambda: dira_core.load(folder)
    yield "import", lambda: import_weights(file, out, "resnet18")
    yield "export", lambda: export(file, out / "model.pth", "smp")
    yield "init", lambda: build_trio(resolve([Layer("t", values | parts)]).recipe)
    yield (
        "init a run",
        lambda: build_trio(resolve([Layer("t", values | parts | {"init": str(folder)})]).recipe),
    )
    yield "resume", lambda: small_run(folder, resume=True)
    checkpoints = Checkpoints(folder / "checkpoints", 2)
    yield "checkpoint", lambda: checkpoints.load(next((folder / "checkpoints").glob("step-*6")))


@pytest.mark.parametrize("name", PICKLES)
def test_no_load_path_runs_the_code_of_a_pickle(
    tmp_path: Path, run_folder: Path, name: str
) -> None:
    canary, folder = tmp_path / "canary", tmp_path / "run"
    shutil.copytree(run_folder, folder)
    data = PICKLES[name](canary)
    assert not canary.exists()
    (folder / "a.pt").write_bytes(data)
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(data)
    for checkpoint in (folder / "checkpoints").iterdir():
        forge(checkpoint)
    (folder / ".metadata").write_bytes(data)  # what torch.distributed.checkpoint would unpickle
    (folder / "status.json").write_text('{"status": "preempted"}')
    for kind, attempt in load_paths(folder, tmp_path / "out"):
        with pytest.raises(DiraError):
            attempt()
        assert not canary.exists(), kind


def forge(checkpoint: Path) -> None:
    """Make a checkpoint's manifest fit its files, as an attacker would."""
    manifest = json.loads((checkpoint / checkpoint_manifest.NAME).read_text())
    content = manifest.get("content", manifest)
    for name, entry in content["files"].items():
        data = (checkpoint / name).read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (checkpoint / checkpoint_manifest.NAME).unlink()
    checkpoint_manifest.write(
        checkpoint, checkpoint_manifest.Manifest.model_validate(unsealed(content))
    )


def unsealed(content: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in content.items() if k in checkpoint_manifest.Manifest.model_fields}


def tensors_file(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


ATTACKS: dict[str, bytes] = {
    "too short": b"\x01\0\0",
    "length beyond the file": tensors_file({"a": entry([4], 0, 16)}, length=10**6),
    "length of everything": tensors_file({"a": entry([4], 0, 16)}, length=2**63 - 1),
    "negative length": b"\xff" * 8 + b"{}",
    "a list": tensors_file([1, 2]),
    "no JSON": tensors_file(b"{'a': 1}"),
    "not UTF-8": tensors_file(b'{"\xff": 1}'),
    "twice": tensors_file(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    ),
    "overlap": tensors_file({"a": entry([4], 0, 16), "b": entry([2], 8, 16)}),
    "hole": tensors_file({"a": entry([1], 0, 4), "b": entry([1], 12, 16)}),
    "surplus": tensors_file({"a": entry([4], 0, 16)}, bytes(64)),
    "beyond the end": tensors_file({"a": entry([400], 0, 1600)}),
    "backwards": tensors_file({"a": entry([4], 16, 0)}),
    "negative offset": tensors_file({"a": entry([4], -16, 0)}),
    "another size": tensors_file({"a": entry([5], 0, 16)}),
    "overflow": tensors_file({"a": entry([2**33, 2**33], 0, 16)}),
    "negative shape": tensors_file({"a": entry([-4], 0, 16)}),
    "fraction": tensors_file({"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]}}),
    "unknown type": tensors_file({"a": entry([4], 0, 16, "F31")}),
    "no type": tensors_file({"a": {"shape": [4], "data_offsets": [0, 16]}}),
    "text as a tensor": tensors_file({"a": "b"}),
    "deep": tensors_file(b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    "numbers as metadata": tensors_file({"__metadata__": {"dira": 3}, "a": entry([4], 0, 16)}),
    "a hundred thousand": tensors_file(
        {f"layer{n}.\x1b[31m": entry([0], 0, 0) for n in range(100_000)}, b""
    ),
    "escapes": tensors_file({"encoder.\x1b[2J\n../../etc/passwd": entry([4], 0, 16)}),
    "markup": tensors_file({"encoder.<script>alert(1)</script>[link=x]": entry([4], 0, 16)}),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_format_is_one_plain_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(ATTACKS[name])
    with pytest.raises(CheckpointError) as caught:
        import_weights(path, tmp_path / "out", "resnet18")
    said = str(caught.value)
    assert "\x1b" not in said
    assert len(said.splitlines()) == 1
    assert len(said) < 1000 + len(str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_names_of_a_file_are_printed_without_their_escapes(tmp_path: Path) -> None:
    state = {"encoder.conv1.weight": torch.ones(1), "other.\x1b[2J\n": torch.ones(1)}
    (tmp_path / "a.pt").write_bytes(saved(state))
    found = read_weights(tmp_path / "a.pt")
    from dira_core.transplant import families, some

    for text in (families(found.left_out), some(found.left_out)):
        assert "\\x1b[2J\\n" in text
        assert "\x1b" not in text
