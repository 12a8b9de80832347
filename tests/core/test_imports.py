"""Weights of other programs become dira's whole, with every change said, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import lively, recipe, weights
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import get_model

from dira_core.errors import CheckpointError, PluginError, RecipeError
from dira_core.export import load
from dira_core.imports import import_weights


def original(colour: bool = True, classes: int = 1, **options: Any) -> nn.Module:
    """Return the U-Net of the public DiRA code, as its present-day library builds it."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    channels = 3 if colour else 1
    unet = smp.Unet(
        "resnet18",
        encoder_weights=None,
        in_channels=channels,
        classes=classes,
        activation="sigmoid",
        **options,
    )
    return lively(unet)


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@torch.no_grad()
def test_a_checkpoint_of_the_public_code_restores_as_it_did(tmp_path: Path) -> None:
    unet = original()
    key = {name: torch.randn_like(t.float()) for name, t in unet.state_dict().items()}
    state = under("module.encoder_q.backbone.", unet.state_dict())
    state |= under("module.encoder_k.backbone.", key)
    state |= {"module.encoder_q.fc.0.weight": torch.ones(2), "module.queue": torch.ones(2)}
    torch.save({"epoch": 9, "state_dict": state, "optimizer": {}}, tmp_path / "checkpoint.pth")
    done = import_weights(tmp_path / "checkpoint.pth", tmp_path / "out", size=448)
    found = load(tmp_path / "out")
    assert found.restorer is not None
    grey = torch.rand(2, 1, 64, 96)
    wanted = unet(grey.expand(-1, 3, -1, -1))
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found.restorer(found.backbone(grey)), wanted, rtol=1e-5, atol=1e-6)
    assert done.reports["backbone"].adapted == {"conv1.weight": "3 -> 1 channels"}
    assert done.reports["restorer"].exact
    said = list(done.lines())
    assert said[0].startswith("backbone   119 of 120 resnet18 tensors matched, 1 adapted")
    assert "adapted    conv1.weight: 3 -> 1 channels; a grey image gives the same maps" in said[1]
    assert said[2] == "restorer   62 of 62 unet tensors matched"
    assert said[3] == "left out   182 encoder_k.backbone.*, 1 encoder_q.fc.*, 1 queue"
    assert (found.preprocess.channels, found.preprocess.size) == (1, 448)
    assert found.header.origin == "checkpoint.pth"


@torch.no_grad()
def test_colour_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    unet = original(classes=3)
    save_file(unet.state_dict(), tmp_path / "a.safetensors")
    import_weights(tmp_path / "a.safetensors", tmp_path / "out", channels=3)
    found, fed = load(tmp_path / "out"), torch.rand(1, 3, 64, 64)
    assert found.restorer is not None
    assert torch.equal(found.restorer(found.backbone(fed)), unet(fed))


def test_a_decoder_that_fits_no_restorer_is_left_out_and_said(tmp_path: Path) -> None:
    unet = original(colour=False, decoder_channels=(8, 8, 8, 8, 8))
    save_file(unet.state_dict(), tmp_path / "a.safetensors")
    done = import_weights(tmp_path / "a.safetensors", tmp_path / "out")
    assert load(tmp_path / "out").restorer is None
    assert done.reports.keys() == {"backbone"}
    left_out, why = list(done.lines())[-2:]
    assert left_out.startswith("left out   ")
    shapes = "blocks.0.conv1.0.weight is 8x768x3x3, must be 256x768x3x3"
    assert why.startswith("decoder    fits no Restorer, closest is 'unet' (")
    assert shapes in why
    heads = ("decoder.", "segmentation_head.")
    assert set(done.left_out) == {n for n in unet.state_dict() if n.startswith(heads)}


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 34, 50])
def test_an_encoder_alone_is_known_by_its_blocks(tmp_path: Path, depth: int) -> None:
    torch.manual_seed(0)
    net = get_model(f"resnet{depth}", weights=None)
    lively(net)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    done = import_weights(tmp_path / "a.pth", tmp_path / "out")
    found = load(tmp_path / "out")
    assert found.header.backbone is not None
    assert found.header.backbone["name"] == f"resnet{depth}"
    assert set(done.reports["backbone"].unexpected) == {"fc.weight", "fc.bias"}
    assert "unexpected 1 fc.weight, 1 fc.bias" in list(done.lines())
    grey = torch.rand(1, 1, 64, 64, dtype=torch.float64)
    net.fc = nn.Identity()
    wanted = net.double()(grey.expand(-1, 3, -1, -1))
    maps = found.backbone.double()(grey)[-1].mean((2, 3))
    assert (maps - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def test_a_network_of_the_same_blocks_and_other_widths_is_refused(tmp_path: Path) -> None:
    net = get_model("resnext50_32x4d", weights=None)
    torch.save(net.state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match="does not hold backbone 'resnet50' .* of another shape"
    ):
        import_weights(tmp_path / "a.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("gone", ["encoder.layer3.0.conv2.weight", "encoder.bn1.running_var"])
def test_nothing_missing_is_filled_up_at_random(tmp_path: Path, gone: str) -> None:
    state = original().state_dict()
    del state[gone]
    torch.save(state, tmp_path / "a.pth")
    name = gone.removeprefix("encoder.")
    with pytest.raises(CheckpointError, match=rf"1 missing \({name}\).*filled up at random"):
        import_weights(tmp_path / "a.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_backbone_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    weights(tmp_path / "run", recipe())
    with pytest.raises(CheckpointError, match="does not hold backbone 'resnet34'"):
        import_weights(tmp_path / "run", tmp_path / "out", "resnet34")
    with pytest.raises(RecipeError, match="no backbone is called 'resnet19'"):
        import_weights(tmp_path / "run", tmp_path / "out", "resnet19")
    torch.save({"net.encoder.a": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(RecipeError, match=r"does not say which network.*\(net\.encoder\.a\)"):
        import_weights(tmp_path / "a.pth", tmp_path / "out")


def test_weights_are_never_written_over(tmp_path: Path) -> None:
    weights(tmp_path / "run", recipe())
    before = (tmp_path / "run/weights/backbone.safetensors").read_bytes()
    with pytest.raises(RecipeError, match="is there already: use another --out"):
        import_weights(tmp_path / "run", tmp_path / "run")
    assert (tmp_path / "run/weights/backbone.safetensors").read_bytes() == before


def test_a_header_that_names_what_is_not_installed_is_refused(tmp_path: Path) -> None:
    from dira_core.weightfiles import Header

    header = Header(channels=1, size=8, backbone={"name": "of-a-plugin"})
    save_file({"conv1.weight": torch.ones(1)}, tmp_path / "a.safetensors", header.metadata())
    with pytest.raises((RecipeError, PluginError), match="no backbone is called 'of-a-plugin'"):
        import_weights(tmp_path / "a.safetensors", tmp_path / "out")
