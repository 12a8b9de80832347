"""Networks of MONAI as encoder and decoder: number for number the library's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn

from dira_core import Backbone, PluginError, RecipeError, Restorer, gather, resolve
from dira_core.build import build_source, build_trio
from dira_core.game import Game
from dira_core.layering import Layer
from dira_core.plugins import make
from dira_core.testing import choice, tiny_batch

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


def copy(pairs: list[tuple[nn.Module, nn.Module]]) -> None:
    """Give the modules of MONAI's network the weights of ours."""
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())


def unet(encoder: Any, decoder: Any, units: int = 2) -> nn.Module:
    network = nets.UNet(3, 1, 1, encoder.channels, [2, 2], num_res_units=units)
    outer, inner = network.model, network.model[1].submodule
    downs = [outer[0], inner[0], inner[1].submodule]
    bottom, *ups = decoder.ups
    assert isinstance(bottom, nn.Identity)
    copy([*zip(downs, encoder.levels, strict=True), *zip([inner[2], outer[2]], ups, strict=True)])
    return network


def plain_unet(encoder: Any, decoder: Any) -> nn.Module:
    return unet(encoder, decoder, units=0)


def dynunet(encoder: Any, decoder: Any, residual: bool = False) -> nn.Module:
    network = nets.DynUNet(
        3, 1, 1, [3] * 3, [1, 2, 2], [2, 2], filters=encoder.channels, res_block=residual
    )
    downs = [network.input_block, *network.downsamples, network.bottleneck]
    copy([*zip(downs, encoder.levels, strict=True)])
    copy([(t, o.block) for t, o in zip(network.upsamples, decoder.ups, strict=True)])
    copy([(network.output_block.conv.conv, decoder.head)])
    return network


def residual_dynunet(encoder: Any, decoder: Any) -> nn.Module:
    return dynunet(encoder, decoder, residual=True)


def swin(encoder: Any, decoder: Any) -> nn.Module:
    network = nets.SwinUNETR(1, 1, feature_size=12, window_size=2)
    blocks = [network.encoder1, network.encoder2, network.encoder3, network.encoder4]
    copy([(network.swinViT, encoder.transformer), (network.encoder10, encoder.deepest)])
    copy([*zip(blocks, encoder.blocks, strict=True)])
    ups = [getattr(network, f"decoder{level}") for level in (5, 4, 3, 2, 1)]
    copy([(t, o.block) for t, o in zip(ups, decoder.ups, strict=True)])
    copy([(network.out.conv.conv, decoder.head)])
    return network


@pytest.mark.parametrize(
    ("name", "chosen", "restores", "theirs", "sides"),
    [
        ("monai-unet", {}, {}, unet, (16, 24, 32)),
        ("monai-unet", {"units": 0}, {"units": 0}, plain_unet, (16, 16, 16)),
        ("monai-dynunet", {}, {}, dynunet, (16, 24, 32)),
        ("monai-dynunet", {"residual": True}, {}, residual_dynunet, (16, 16, 16)),
        ("monai-swin", {}, {}, swin, (32, 32, 64)),
    ],
)
def test_encoder_and_decoder_are_the_network_of_monai(
    name: str,
    chosen: dict[str, Any],
    restores: dict[str, Any],
    theirs: Callable[[Any, Any], nn.Module],
    sides: tuple[int, int, int],
) -> None:
    ours = encoder(name, **chosen)
    restorer = decoder(name, ours, **restores)
    network, images = theirs(ours, restorer), volumes(*sides)
    expected = torch.sigmoid(network(images))
    restored = restorer(ours(images))
    torch.testing.assert_close(restored, expected)
    wanted = torch.autograd.grad(expected.square().sum(), [*network.parameters()])
    got = torch.autograd.grad(restored.square().sum(), [*ours.parameters(), *restorer.parameters()])
    assert sum(g.double().abs().sum().item() for g in got) == pytest.approx(
        sum(g.double().abs().sum().item() for g in wanted), rel=1e-4
    )


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
