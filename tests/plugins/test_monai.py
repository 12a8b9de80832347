"""Networks of MONAI as encoder and decoder: number for number the library's own."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dira_core import (
    Backbone,
    PluginError,
    Preprocessing,
    Pretrained,
    RecipeError,
    Restorer,
    Twin,
    gather,
    resolve,
)
from dira_core.build import build_source, build_trio
from dira_core.exports import encoder_alone, export
from dira_core.game import Game
from dira_core.layering import Layer
from dira_core.plugins import make
from dira_core.testing import choice, tiny_batch
from dira_core.weightfiles import Header

OPTIONS: dict[str, dict[str, Any]] = {
    "monai-unet": {"widths": (4, 8, 12)},
    "monai-dynunet": {"widths": (4, 6, 8)},
    "monai-swin": {"features": 12, "window": 2},
}
NAMES = sorted(OPTIONS)


def encoder(name: str, **changes: Any) -> Backbone:
    torch.manual_seed(0)
    module: Backbone = make("backbone", choice("backbone", name, **(OPTIONS[name] | changes)), 1, 3)
    return module


def decoder(name: str, backbone: Backbone, **options: Any) -> Restorer:
    module: Restorer = make("restorer", choice("restorer", name, **options), backbone)
    return module


def volumes(*sides: int) -> Tensor:
    return torch.rand(2, 1, *sides, generator=torch.Generator().manual_seed(1))


def pretrained(name: str, chosen: dict[str, Any], restores: dict[str, Any]) -> Pretrained:
    backbone = encoder(name, **chosen)
    restorer = decoder(name, backbone, **restores)
    header = Header(channels=1, size=32, dims=3, backbone={"name": name}, restorer={"name": name})
    return Pretrained(backbone.eval(), restorer.eval(), Preprocessing(1, 32), header)


def twin(weights: Pretrained) -> Twin:
    made: Twin = make("export", choice("export", "monai"), weights)
    return made


@pytest.mark.parametrize(
    ("name", "chosen", "restores", "sides"),
    [
        ("monai-unet", {}, {}, (16, 24, 32)),
        ("monai-unet", {"units": 0}, {"units": 0}, (16, 16, 16)),
        ("monai-unet", {"norm": "batch"}, {"norm": "batch"}, (16, 16, 16)),
        ("monai-dynunet", {}, {}, (16, 24, 32)),
        ("monai-dynunet", {"residual": True}, {}, (16, 16, 16)),
        ("monai-swin", {}, {}, (32, 32, 64)),
    ],
)
def test_encoder_and_decoder_are_the_network_of_monai(
    name: str, chosen: dict[str, Any], restores: dict[str, Any], sides: tuple[int, int, int]
) -> None:
    ours = pretrained(name, chosen, restores)
    assert ours.restorer is not None
    network, images = twin(ours).network.eval(), volumes(*sides)
    expected = torch.sigmoid(network(images))
    restored = ours.restorer(ours.backbone(images))
    torch.testing.assert_close(restored, expected)
    wanted = torch.autograd.grad(expected.square().sum(), [*network.parameters()])
    parameters = [*ours.backbone.parameters(), *ours.restorer.parameters()]
    got = torch.autograd.grad(restored.square().sum(), parameters)
    assert sum(g.double().abs().sum().item() for g in got) == pytest.approx(
        sum(g.double().abs().sum().item() for g in wanted), rel=1e-4
    )


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_code_of_the_card_gives_the_network_of_monai(tmp_path: Path, name: str) -> None:
    ours = pretrained(name, {}, {})
    done = export(ours, "monai", tmp_path / "a.safetensors")
    assert done.difference <= 1e-6
    code = re.search(r"```python\n(.*?)\n```\n", (tmp_path / "a.md").read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace('load_file("', f'load_file("{tmp_path}/'), names)
    assert type(names["model"]).__module__.startswith("monai.")
    images = volumes(32, 32, 64)
    assert ours.restorer is not None
    restored = ours.restorer(ours.backbone(images))
    torch.testing.assert_close(torch.sigmoid(names["model"](images)), restored)


def test_weights_that_are_no_network_of_monai_are_refused(tmp_path: Path) -> None:
    ours = pretrained("monai-unet", {}, {})
    with pytest.raises(RecipeError, match="these weights are of monai-unet: use --to onnx"):
        twin(encoder_alone(ours))
    mixed = ours.header.model_copy(update={"restorer": {"name": "monai-swin"}})
    with pytest.raises(RecipeError, match="are of monai-unet and monai-swin"):
        twin(replace(ours, header=mixed))
    with pytest.raises(RecipeError, match="other norms or units than its encoder"):
        twin(pretrained("monai-unet", {}, {"norm": "batch"}))


@pytest.mark.parametrize("name", NAMES)
def test_sides_that_are_no_multiples_are_rounded_up_and_restored(name: str) -> None:
    backbone = encoder(name)
    images = volumes(21, 36, 19)
    pyramid = backbone(images)
    for maps, channels, stride in zip(pyramid, backbone.channels, backbone.strides, strict=True):
        assert maps.shape == (2, channels, *(-(-side // stride) for side in (21, 36, 19)))
    restored = decoder(name, backbone)(pyramid)
    least = backbone.strides[0]
    assert restored.shape[2:] == tuple(-(-side // least) * least for side in (21, 36, 19))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on", ["unet3d", *NAMES])
def test_a_decoder_restores_from_any_encoder(name: str, on: str) -> None:
    options = OPTIONS.get(on, {"width": 2})
    backbone: Backbone = make("backbone", choice("backbone", on, **options), 1, 3)
    view = tiny_batch(size=(16, 32, 64)).views[0]
    restorer = decoder(name, backbone, loss="l1")
    restored = restorer(backbone(view.image))
    assert restored.shape == view.crop.shape
    expected = (restored - view.crop).abs().mean()
    torch.testing.assert_close(restorer.distance(restored, view), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_to_shard_hold_every_weight_but_the_head(name: str) -> None:
    backbone = encoder(name)
    for module in (backbone, decoder(name, backbone)):
        held = {id(p) for part in module.segments() for p in part.parameters()}
        assert {id(p) for n, p in module.named_parameters() if not n.startswith("head")} == held


@pytest.mark.parametrize("name", NAMES)
def test_views_too_small_for_an_instance_norm_are_refused_with_the_way_out(name: str) -> None:
    backbone = encoder(name)
    side = max(backbone.strides)
    with pytest.raises(RecipeError, match=rf"set views.size to more than {side} along"):
        backbone(volumes(side, side, side))
    encoder(name, norm="batch")(volumes(side, side, side))


@pytest.mark.parametrize("missing", ["monai.networks.nets", "einops"])
@pytest.mark.parametrize("name", NAMES)
def test_without_monai_the_error_names_the_extra(
    name: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(PluginError, match=r"pip install 'dira-ssl\[monai\]'"):
        encoder(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_the_whole_trio_reaches_every_weight(name: str) -> None:
    values: dict[str, Any] = {
        "data": {"name": "phantom3d", "n": 4, "size": (32, 48, 48)},
        "backbone": {"name": name, **OPTIONS[name]},
        "discriminator": {"name": "simsiam", "dim": 8, "hidden": 8},
        "restorer": name,
        "adversary": {"name": "patchgan", "widths": [4, 4]},
        "views": {"size": (16, 48, 32)},
        "train": {"batch_size": 4, "epochs": 1, "device": "cpu", "precision": "fp32"},
    }
    layers = [*gather(preset="none", data="phantom3d"), Layer("test", values)]
    recipe = resolve(layers).recipe
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    with closing(game.loader):
        game.trainer.train_step(next(iter(game.trainer.steps())))
    restorer = game.trio.restorer
    assert restorer is not None
    for module in (game.trio.backbone, restorer):
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.isfinite().all(), key
