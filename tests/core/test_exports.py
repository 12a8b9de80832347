"""Weights in other libraries: the same outputs, no name missing or left over, nothing unchecked."""

from __future__ import annotations

import errno
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from networks import WIDTHS, recipe, weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dira_core.encodings import pool
from dira_core.errors import CheckpointError, RecipeError, RunFolderError
from dira_core.export import Preprocessing, Pretrained, load
from dira_core.exports import export, libraries, suffix, usual_place, with_channels
from dira_core.imports import import_weights
from dira_core.testing import TinyBackbone
from dira_core.weightfiles import Header

MODULES = {"timm": "timm", "smp": "segmentation_models_pytorch", "onnx": "onnxruntime"}
LIBRARIES = ["torchvision", "timm", "smp"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the weights of a grey ResNet-18 and a narrow U-Net."""
    folder = tmp_path_factory.mktemp("run")
    weights(folder, recipe())
    return folder


@pytest.fixture
def grey(run: Path) -> Pretrained:
    return load(run)


def images(channels: int = 1, batch: int = 2, height: int = 64, width: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, channels, height, width, generator=generator)


def library(to: str) -> None:
    if to in MODULES:
        pytest.importorskip(MODULES[to])


def ran(card: Path, opens: str) -> dict[str, Any]:
    """Run the code of a model card as a reader would, in its folder; return what it names."""
    code = re.search(r"```python\n(.*?)\n```\n", card.read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace(f'{opens}("', f'{opens}("{card.parent}/'), names)
    return names


def loaded(card: Path) -> nn.Module:
    model = ran(card, "load_file")["model"]
    assert isinstance(model, nn.Module)
    assert not model.training
    return model


def output(pretrained: Pretrained, to: str, fed: Tensor) -> Tensor:
    pyramid = pretrained.backbone(fed)
    if to == "smp":
        assert pretrained.restorer is not None
        restored: Tensor = pretrained.restorer(pyramid)
        return restored
    return pool(pyramid[-1])


def close(found: Tensor, wanted: Tensor, limit: float = 1e-6) -> bool:
    assert found.shape == wanted.shape
    assert wanted.std() > 1e-3, "an output that says nothing"
    return float((found - wanted).abs().max() / wanted.abs().max()) <= limit


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("to", LIBRARIES)
@torch.no_grad()
def test_the_code_of_the_card_gives_a_network_with_the_same_output(
    tmp_path: Path, grey: Pretrained, to: str, channels: int | None
) -> None:
    library(to)
    name = f'{to}") ``` \\n'  # code that quotes it wrongly does something else
    done = export(grey, to, tmp_path / "new" / f"{name}.safetensors", channels)
    assert done.difference <= (0 if channels is None else 1e-12)
    assert [path.name for path in done.files] == [f"{name}.safetensors", f"{name}.md"]
    model = loaded(tmp_path / "new" / f"{name}.md")
    names = load_file(done.files[0]).keys()
    assert names == model.state_dict().keys()
    assert not [name for name in names if name.startswith("fc.")]
    fed = images()
    found = model(fed if channels is None else fed.expand(-1, 3, -1, -1))
    assert close(found, output(grey, to, fed), 1e-6 if channels is None else 5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("to", LIBRARIES)
@torch.no_grad()
def test_what_was_exported_and_imported_again_is_the_same_to_the_bit(
    tmp_path: Path, grey: Pretrained, to: str
) -> None:
    library(to)
    for channels in (None, 3):
        path, home = tmp_path / f"{channels}.safetensors", tmp_path / f"back-{channels}"
        export(grey, to, path, channels)
        done = import_weights(path, home, channels=1)
        back = load(home)
        assert all(not r.missing and not r.unexpected for r in done.reports.values())
        assert done.left_out == ()
        state = back.backbone.state_dict()
        for name, tensor in grey.backbone.state_dict().items():
            assert torch.equal(state[name], tensor)
        assert back.preprocess == grey.preprocess
        if to == "smp":
            assert back.header.restorer == grey.header.restorer
            assert back.restorer is not None
        else:
            assert back.restorer is None
        assert torch.equal(output(back, to, images()), output(grey, to, images()))


def test_a_card_claims_no_training_that_dira_did_not_do(
    tmp_path: Path, run: Path, grey: Pretrained
) -> None:
    save_file(grey.backbone.state_dict(), tmp_path / "foreign.safetensors")
    for given, trained in ((run, True), (tmp_path / "foreign.safetensors", False)):
        home = tmp_path / f"imported-{given.name}"
        import_weights(given, home)
        export(load(home), "torchvision", home / "a.safetensors")
        card = (home / "a.md").read_text()
        assert ("self-superv" in card) == trained
        assert (f"not trained with dira, but imported from {given.name}" in card) != trained
        assert ("the imported file does not say how" in card) != trained


@pytest.mark.slow
@pytest.mark.parametrize("to", LIBRARIES)
@torch.no_grad()
def test_a_resnet_50_travels_there_and_back(tmp_path: Path, to: str) -> None:
    library(to)
    chosen = recipe(backbone="resnet50", restorer="unet")
    weights(tmp_path / "run", chosen)
    pretrained = load(tmp_path / "run")
    assert export(pretrained, to, tmp_path / "a.safetensors").difference <= 1e-6
    model = loaded(tmp_path / "a.md")
    assert close(model(images()), output(pretrained, to, images()))
    import_weights(tmp_path / "a.safetensors", tmp_path / "back")
    assert torch.equal(
        output(load(tmp_path / "back"), to, images()), output(pretrained, to, images())
    )


@pytest.mark.parametrize("to", LIBRARIES)
def test_the_file_says_what_to_feed_it(tmp_path: Path, grey: Pretrained, to: str) -> None:
    library(to)
    done = export(grey, to, tmp_path / "a.safetensors", 3)
    with safe_open(done.files[0], "pt") as file:
        about = json.loads(file.metadata()["dira"])
    assert (about["channels"], about["size"], about["window"]) == (3, 32, "auto")
    assert "values in [0, 1]" in about["preprocessing"]
    assert about["backbone"]["name"] == "resnet18"
    assert (about["restorer"] is None) == (to != "smp")
    card = done.files[1].read_text()
    assert "3 channels, 32 px" in card
    assert ("sigmoid" if to == "smp" else "classifier fc is not part") in card
    assert f"{done.difference:.1e}" in card


@pytest.mark.slow
@pytest.mark.parametrize("channels", [None, 3])
@torch.no_grad()
def test_the_onnx_graphs_give_the_same_output_at_any_batch_and_size(
    tmp_path: Path, grey: Pretrained, channels: int | None
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    done = export(grey, "onnx", tmp_path / "a.onnx", channels)
    assert [path.name for path in done.files] == ["a.onnx", "a-restorer.onnx", "a.md"]
    assert 0 < done.difference <= 1e-5
    encoder, unet = (onnxruntime.InferenceSession(str(path)) for path in done.files[:2])
    about = json.loads(encoder.get_modelmeta().custom_metadata_map["dira"])
    assert (about["channels"], about["size"]) == (channels or 1, 32)
    assert grey.restorer is not None
    for batch, height, width in ((1, 224, 224), (5, 33, 70)):
        fed = images(1, batch, height, width)
        given = {"image": fed.expand(-1, channels or 1, -1, -1).contiguous().numpy()}
        pyramid = grey.backbone(fed)
        found = [torch.from_numpy(output) for output in encoder.run(None, given)]
        assert len(found) == 6
        assert close(found[0], pool(pyramid[-1]), 1e-5)
        for level, wanted in zip(found[1:], pyramid, strict=True):
            assert close(level, wanted, 1e-5)
        (restored,) = unet.run(None, given)
        assert close(torch.from_numpy(restored), grey.restorer(pyramid), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
def test_a_backbone_of_any_kind_and_number_of_axes_travels_as_onnx(
    tmp_path: Path, dims: int
) -> None:
    pytest.importorskip("onnxruntime")
    tiny = of_a_plugin(dims)
    done = export(tiny, "onnx", tmp_path / "a.onnx")
    assert [path.name for path in done.files] == ["a.onnx", "a.md"]
    assert done.difference <= 1e-5
    names = ran(tmp_path / "a.md", "InferenceSession")
    wanted = tiny.backbone(torch.from_numpy(names["image"]))
    assert [each.shape for each in names["maps"]] == [tuple(each.shape) for each in wanted]


def of_a_plugin(dims: int) -> Pretrained:
    header = Header(channels=1, size=32, dims=dims, backbone={"name": "tiny"})
    return Pretrained(TinyBackbone(1, dims).eval(), None, Preprocessing(1, 32), header)


@pytest.mark.parametrize("to", LIBRARIES)
def test_what_the_library_has_no_network_for_is_refused(tmp_path: Path, to: str) -> None:
    library(to)
    with pytest.raises(RecipeError, match="takes a ResNet, these weights are of 'tiny': use --to"):
        export(of_a_plugin(2), to, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_smp_needs_a_decoder_of_its_kind(tmp_path: Path, grey: Pretrained) -> None:
    library("smp")
    with pytest.raises(RecipeError, match="these weights have no restorer"):
        export(replace(grey, restorer=None), "smp", tmp_path / "a.safetensors")

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(512, 1, 1)

    with pytest.raises(RecipeError, match="restorer is built otherwise"):
        export(replace(grey, restorer=Other()), "smp", tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["timm", "smp", "onnx"])
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, grey: Pretrained, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULES[to], None)
    library("onnx") if to != "onnx" else None
    with pytest.raises(RecipeError, match=re.escape(f"pip install 'dira-ssl[{to}]'")):
        export(grey, to, tmp_path / f"a{suffix(to)}")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_computes_something_else_is_not_written(
    tmp_path: Path, grey: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision = libraries.torchvision

    def other(there: Pretrained) -> libraries.Twin:
        twin = torchvision(there)
        twin.network.layer3[1].relu = nn.LeakyReLU(0.01)
        return twin

    monkeypatch.setattr(libraries, "torchvision", other)
    with pytest.raises(CheckpointError, match="computes something else .* nothing is written"):
        export(grey, "torchvision", tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_network_with_other_tensors_is_not_written(
    tmp_path: Path, grey: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision = libraries.torchvision

    def other(there: Pretrained) -> libraries.Twin:
        twin = torchvision(there)
        twin.network.fc = nn.Linear(512, 2)
        return twin

    monkeypatch.setattr(libraries, "torchvision", other)
    with pytest.raises(RecipeError, match=r"2 missing \(fc.weight, fc.bias\)"):
        export(grey, "torchvision", tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "name", "said"),
    [
        (
            "keras",
            "a.safetensors",
            "--to is one of monai, smp, timm, torchvision, onnx, got 'keras'",
        ),
        ("timm", "a.pth", "writes a .safetensors file, got --out"),
        ("onnx", "a.safetensors", "writes a .onnx file, got --out"),
    ],
)
def test_what_cannot_be_written_is_said_first(
    tmp_path: Path, grey: Pretrained, to: str, name: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        export(grey, to, tmp_path / name)


@torch.no_grad()
def test_colour_weights_become_grey_ones_and_nothing_is_made_up(tmp_path: Path) -> None:
    weights(tmp_path / "run", recipe(views={"size": 32, "channels": 3}, restorer="unet"))
    colour = load(tmp_path / "run")
    there = with_channels(colour, 1)
    fed = images()
    assert close(output(there, "timm", fed), output(colour, "timm", fed.expand(-1, 3, -1, -1)))
    assert (there.preprocess.channels, there.header.channels) == (1, 1)
    assert with_channels(colour, 3) is colour
    with pytest.raises(RecipeError, match="weights of 3 channels cannot be given 4"):
        with_channels(colour, 4)
    export(colour, "torchvision", tmp_path / "a.safetensors")
    assert close(loaded(tmp_path / "a.md")(images(3)), output(colour, "torchvision", images(3)))


def test_exports_lie_beside_the_weights(run: Path, tmp_path: Path) -> None:
    wanted = run / "exports/smp.safetensors"
    assert usual_place(run, "smp", channels=3) == wanted.with_stem("smp-3ch")
    assert usual_place(run, "smp") == usual_place(run / "weights", "smp") == wanted
    assert usual_place(tmp_path, "onnx") == tmp_path / "exports/onnx.onnx"


def test_a_place_that_cannot_be_written_to_is_said(
    tmp_path: Path, grey: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(libraries, "write", refuse)
    with pytest.raises(RunFolderError, match=r"cannot write in .* \(Read-only file system\)"):
        export(grey, "torchvision", tmp_path / "a.safetensors")


def test_widths_of_the_decoder_are_those_of_the_weights(tmp_path: Path, grey: Pretrained) -> None:
    library("smp")
    done = export(grey, "smp", tmp_path / "a.safetensors")
    assert f"decoder_channels={WIDTHS}" in done.files[1].read_text()
