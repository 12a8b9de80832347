"""The 3-D U-Net: published layout, any size, any norm; runs on volumes end as the others do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dira_core import Backbone, Progress, Restorer, load
from dira_core.api import run
from dira_core.layering import gather
from dira_core.plugins import make
from dira_core.recipe import Recipe
from dira_core.resolving import resolve
from dira_core.testing import choice
from dira_core.watching import Silent

PUBLISHED = {"up": "transposed", "head": 1, "widths": [256, 128, 64]}


def encoder(**options: Any) -> Backbone:
    module: Backbone = make("backbone", choice("backbone", "unet3d", **options), 1, 3)
    return module


def decoder(backbone: Backbone, **options: Any) -> Restorer:
    module: Restorer = make("restorer", choice("restorer", "unet", **options), backbone)
    return module


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_there_are_as_many_parameters_as_published() -> None:
    """Counted by hand: convolutions without biases, two numbers a channel in each norm."""
    pairs = [(1, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
    encoding = sum(27 * a * b + 2 * b for a, b in pairs)
    ways = [(512, 256, 256), (256, 128, 128), (128, 64, 64)]
    decoding = sum(8 * a * a + a + 27 * (a + b) * c + 27 * c * c + 4 * c for a, b, c in ways) + 65
    with torch.device("meta"):
        backbone = encoder()
        restorer = decoder(backbone, **PUBLISHED)
    assert (parameters(backbone), parameters(restorer)) == (encoding, decoding)
    assert round((encoding + decoding) / 1e6, 2) == 19.07


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("up", ["nearest", "transposed"])
@pytest.mark.parametrize("size", [(8, 16, 24), (9, 8, 11)])
def test_any_volume_is_encoded_by_halves_and_decoded_to_its_size(
    size: tuple[int, ...], up: str, norm: str
) -> None:
    backbone = encoder(width=2, norm=norm)
    restorer = decoder(backbone, up=up, norm=norm, widths=[8, 4, 2])
    volume = torch.rand(2, 1, *size)
    pyramid = backbone(volume)
    assert [maps.shape[1] for maps in pyramid] == [4, 8, 16, 32]
    for maps, stride in zip(pyramid, backbone.strides, strict=True):
        assert maps.shape[2:] == tuple(-(-side // stride) for side in size)
    restored = restorer(pyramid)
    assert restored.shape == volume.shape
    assert (restored >= 0).all()
    assert (restored <= 1).all()


@pytest.mark.parametrize(("precision", "size"), [("fp32", (8, 16, 16)), ("bf16", (24, 24, 24))])
def test_gradients_reach_every_weight_and_are_those_of_float64(
    precision: str, size: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    backbone = encoder(width=4, norm="group")
    exact = encoder(width=4, norm="group").double()
    exact.load_state_dict(backbone.state_dict())
    volume = torch.rand(2, 1, *size)
    for network, given in ((backbone, volume), (exact, volume.double())):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16" and given is volume):
            deepest = network(given)[-1]
        signs = torch.linspace(-1, 1, deepest.shape[1]).view(-1, 1, 1, 1)
        (deepest * signs).mean().backward()
    close = 1e-4 if precision == "fp32" else 0.5  # garbage is 1 and more
    for (name, got), want in zip(backbone.named_parameters(), exact.parameters(), strict=True):
        assert got.grad is not None, name
        assert want.grad is not None
        error = (got.grad.double() - want.grad).norm() / want.grad.norm()
        assert error < close, name


def recipe() -> Recipe:
    values = [
        "backbone.width=2",
        "backbone.norm=group",
        "restorer.widths=[8,4,2]",
        "restorer.norm=group",
        "adversary.widths=[8,16,16]",
        "data.n=8",
        "data.size=[16,24,24]",
        "views.size=[8,16,16]",
        "train.epochs=2",
        "train.batch_size=4",
        "checkpoint.every_steps=1",
        "log.every=1",
        "train.device=cpu",
    ]
    return resolve(gather(preset="tiny3d", assignments=values)).recipe


def outcome(folder: Path) -> str:
    files = sorted((folder / "weights").glob("*.safetensors"))
    assert files
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class Interrupting(Silent):
    """A display that presses Ctrl-C after the third of four steps."""

    def stepped(
        self, progress: Progress, metrics: Mapping[str, float], speed: Mapping[str, float]
    ) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt


def test_a_run_on_volumes_stopped_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    run(recipe(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(recipe(), tmp_path / "cut", display=Interrupting())
    run(recipe(), tmp_path / "cut", resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert (tmp_path / "whole/images/restored.png").is_file()
    loaded = load(tmp_path / "whole")
    assert loaded.preprocess.size == (8, 16, 16)


def test_made_up_volumes_get_the_preset_for_them() -> None:
    got = resolve(gather(data="phantom3d")).recipe
    assert (got.backbone.name, got.data.name) == ("unet3d", "phantom3d")
    assert got.views.size == (16, 32, 32)
    fewer = resolve(gather(data="phantom3d", assignments=["data.n=8"])).recipe
    assert fewer.backbone == got.backbone
    assert resolve(gather(assignments=["data.n=8"])).recipe.data.name == "phantom"
