"""Files of weights: every layout is understood, no hostile file does anything."""

from __future__ import annotations

import io
import json
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model

from dira_core.errors import CheckpointError
from dira_core.weightfiles import (
    BACKBONE,
    Header,
    joined,
    read_weights,
    resnet_name,
    split,
    weights_folder,
)

UNET = {
    "encoder.conv1.weight": torch.full((2, 1), 1.0),
    "encoder.layer1.0.conv1.weight": torch.full((2, 1), 2.0),
    "decoder.blocks.0.conv1.0.weight": torch.full((2, 1), 3.0),
    "segmentation_head.0.weight": torch.full((2, 1), 4.0),
    "segmentation_head.0.bias": torch.full((2,), 5.0),
}
OURS = (
    {"conv1.weight": 1.0, "layer1.0.conv1.weight": 2.0},
    {"blocks.0.conv1.0.weight": 3.0, "head.weight": 4.0, "head.bias": 5.0},
)


def values(tensors: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(tensor.flatten()[0]) for name, tensor in tensors.items()}


def under(prefix: str, state: dict[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor * scale for name, tensor in state.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "module._orig_mod.",
        "encoder_q.backbone.",
        "module.encoder_q.backbone.",
        "backbone.",
    ],
)
def test_a_unet_is_told_apart_under_any_prefix_of_training_code(prefix: str) -> None:
    parts = split(under(prefix, UNET))
    assert (values(parts.backbone), values(parts.restorer)) == OURS
    assert parts.left_out == ()


@pytest.mark.parametrize("key_network_first", [True, False])
def test_of_query_and_key_only_the_query_is_taken(key_network_first: bool) -> None:
    query = under("module.encoder_q.backbone.", UNET)
    key = under("module.encoder_k.backbone.", UNET, scale=-1.0)
    other = {"module.encoder_q.fc.0.weight": torch.ones(1), "module.queue": torch.ones(1)}
    state = key | query | other if key_network_first else other | query | key
    parts = split(state)
    assert (values(parts.backbone), values(parts.restorer)) == OURS
    assert set(parts.left_out) == key.keys() | other.keys()


def test_an_encoder_alone_has_no_prefix() -> None:
    parts = split({"conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)})
    assert parts.backbone.keys() == {"conv1.weight", "fc.weight"}
    assert parts.restorer == {}
    plain_moco = {"module.encoder_q.conv1.weight": torch.ones(1), "module.queue": torch.ones(1)}
    assert split(plain_moco).backbone.keys() == {"conv1.weight"}


def test_joining_what_was_split_gives_the_same_names() -> None:
    parts = split(UNET)
    again = joined(parts.backbone, parts.restorer)
    assert again.keys() == UNET.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in UNET.items())


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def old_format(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("write", [saved, old_format])
def test_what_torch_saved_is_read_wrapped_or_not(
    tmp_path: Path, write: Any, wrap: str | None
) -> None:
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": []}
    content = {"epoch": 3, wrap: UNET, "optimizer": optimizer} if wrap else UNET
    (tmp_path / "a.pth").write_bytes(write(content))
    parts = read_weights(tmp_path / "a.pth")
    assert (values(parts.backbone), values(parts.restorer)) == OURS
    assert parts.header is None
    assert len(parts.digests["a.pth"]) == 64


def test_of_several_networks_none_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(saved({"model": UNET, "\x1b[31mema": UNET}))
    with pytest.raises(CheckpointError, match=r"several networks \('.x1b\[31mema', 'model'\)"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.safetensors", "without-suffix"])
def test_safetensors_are_known_by_their_content_too(tmp_path: Path, name: str) -> None:
    save_file(UNET, tmp_path / name)
    assert values(read_weights(tmp_path / name).backbone) == OURS[0]


class Trap:
    """Calls a function of its choice when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("write", [saved, old_format])
def test_no_code_of_a_file_is_run(tmp_path: Path, write: Any) -> None:
    trapped = tmp_path / "trapped"
    (tmp_path / "a.pth").write_bytes(write({"state_dict": UNET, "optimizer": Trap(trapped)}))
    with pytest.raises(CheckpointError, match="wants to call .* and dira runs no code of a file"):
        read_weights(tmp_path / "a.pth")
    assert not trapped.exists()


def test_an_archive_of_code_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="no file of weights, or damaged"):
        read_weights(tmp_path / "a.pt")


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello, these are no weights",
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle of a number": b"\x80\x04K\x01.",
    "endless pickle": b"\x80\x04" + b"(" * 100_000,
    "a list": saved([torch.ones(1)]),
    "a tensor": saved(torch.ones(1)),
    "header too long": struct.pack("<Q", 2**62) + b"{}",
    "header of garbage": struct.pack("<Q", 4) + b"{,,}",
    "header of lists": struct.pack("<Q", 2000) + b'{"a":' + b"[" * 1995,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_plain_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(HOSTILE[name])
    with pytest.raises(CheckpointError) as caught:
        read_weights(tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_file_is_one_plain_error(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "pth":
        path.write_bytes(saved(UNET))
    else:
        save_file(UNET, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(path)


def test_what_is_no_dense_tensor_by_name_is_passed_over(tmp_path: Path) -> None:
    odd = {
        1: torch.ones(1),
        "sparse": torch.eye(2).to_sparse(),
        "number": 3,
        "none": None,
        "meta": torch.ones(1, device="meta"),
    }
    (tmp_path / "a.pth").write_bytes(saved(UNET | odd))
    parts = read_weights(tmp_path / "a.pth")
    assert (values(parts.backbone), values(parts.restorer)) == OURS


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({}, "no tensors"),
        (
            {"decoder.blocks.0.conv1.0.weight": torch.ones(1)},
            r"no encoder \(.* start with decoder\)",
        ),
    ],
)
def test_a_file_without_an_encoder_is_refused(
    tmp_path: Path, state: dict[str, Tensor], what: str
) -> None:
    (tmp_path / "a.pth").write_bytes(saved(state))
    with pytest.raises(CheckpointError, match=f"holds {what}: give a file with"):
        read_weights(tmp_path / "a.pth")


def test_a_run_its_weights_and_the_backbone_in_them_mean_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    assert {weights_folder(each) for each in (tmp_path, folder, folder / BACKBONE)} == {folder}


def test_names_of_a_backbone_that_dira_wrote_are_taken_as_they_are(tmp_path: Path) -> None:
    state = {"encoder.weight": torch.ones(2), "decoder.weight": torch.ones(3)}
    header = Header(channels=1, size=64, backbone={"name": "of a plugin"})
    save_file(state, tmp_path / BACKBONE, header.metadata())
    parts = read_weights(tmp_path / BACKBONE)
    assert (parts.backbone.keys(), parts.restorer, parts.left_out) == (state.keys(), {}, ())


def test_a_key_network_alone_is_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(saved(under("encoder_k.", UNET)))
    with pytest.raises(CheckpointError, match=r"holds no encoder.*start with encoder_k\)"):
        read_weights(tmp_path / "a.pth")


def test_a_path_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="give the folder of a finished run"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        read_weights(tmp_path / "gone.pth")


@pytest.mark.parametrize(
    "about", ["[]", '{"format": 1}', '{"format": 1, "channels": 1e9, "size": 8}', "{", "[" * 99999]
)
def test_a_header_that_is_none_is_damage(tmp_path: Path, about: str) -> None:
    save_file(UNET, tmp_path / "a.safetensors", {"dira": about})
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(tmp_path / "a.safetensors")


def test_a_header_reads_back_as_it_was_written(tmp_path: Path) -> None:
    header = Header(channels=1, size=64, window=(10.0, 20.0), backbone={"name": "x"}, origin="y")
    save_file(UNET, tmp_path / "a.safetensors", header.metadata())
    parts = read_weights(tmp_path / "a.safetensors")
    assert parts.header == header
    assert parts.network == "x"
    assert list(header.metadata()) == ["dira"]  # several would make no two files alike
    assert json.loads(header.metadata()["dira"])["format"] == 1


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_a_resnet_is_known_by_its_blocks(depth: int) -> None:
    with torch.device("meta"):
        net: nn.Module = get_model(f"resnet{depth}", weights=None)
    assert resnet_name(net.state_dict()) == f"resnet{depth}"


def test_what_is_no_resnet_has_no_name() -> None:
    with torch.device("meta"):
        net: nn.Module = get_model("vgg11", weights=None)
    assert resnet_name(net.state_dict()) is None
    assert resnet_name({}) is None
