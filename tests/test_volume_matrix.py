"""Every Discriminator and distortion that says so works on volumes, by the road of a run."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
import torch

from dira_core import gather, resolve
from dira_core.build import build_source, build_trio
from dira_core.game import Game
from dira_core.layering import Layer
from dira_core.plugins import installed

SIZE = (8, 16, 24)
CUBE = (16, 16, 16)
TURNED = {"rotation3d", "rotate3d"}
"""Quarter turns need equal sides."""


def size_for(name: str) -> tuple[int, int, int]:
    return CUBE if name in TURNED else SIZE


def of_volumes(kind: Any) -> list[str]:
    return [n for n in installed().names(kind) if 3 in installed().find(kind, n).dims]


def game(**changes: Any) -> Game:
    """Return a run on crops of made-up volumes whose sides all differ."""
    values: dict[str, Any] = {
        "data": {"name": "phantom3d", "n": 8, "size": (16, 24, 32)},
        "backbone": {"name": "unet3d", "width": 2},
        "discriminator": "none",
        "restorer": {"name": "unet", "widths": [8, 4, 2]},
        "adversary": {"name": "patchgan", "widths": [4, 4]},
        "views": {"size": SIZE, "scale": [0.4, 1.0]},
        "train": {"batch_size": 4, "epochs": 1, "device": "cpu", "precision": "fp32"},
    }
    layers = [*gather(preset="none", data="phantom3d"), Layer("test", values | changes)]
    recipe = resolve(layers).recipe
    return Game(build_trio(recipe), build_source(recipe), recipe)


def test_the_roles_of_the_paper_are_for_volumes_too() -> None:
    assert {"simsiam", "mocov2", "barlow"} <= set(of_volumes("discriminator"))
    assert {"flip", "inner-cutout", "outer-cutout", "patch-swap"} <= set(of_volumes("distortion"))


@pytest.mark.slow
@pytest.mark.parametrize("name", of_volumes("discriminator"))
def test_a_step_on_volumes_is_finite_and_reaches_the_backbone(name: str) -> None:
    options = installed().find("discriminator", name).options.model_fields
    narrow = {k: 16 for k, f in options.items() if isinstance(f.default, int) and f.default > 100}
    views = {"size": size_for(name), "scale": [0.4, 1.0]}
    played = game(discriminator={"name": name, **narrow}, views=views)
    trainer = played.trainer
    before = {k: p.detach().clone() for k, p in played.trio.backbone.named_parameters()}
    with closing(played.loader):
        trainer.players[0].epoch_started(trainer.progress, played.features())
        trainer.train_step(next(iter(trainer.steps())))
    for key, parameter in played.trio.backbone.named_parameters():
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("name", of_volumes("distortion"))
def test_a_distortion_makes_views_of_volumes(name: str) -> None:
    of = {"of": ["inner-cutout", "patch-swap"], "weights": [0.4, 0.6]}
    changes: dict[str, Any] = of if name == "one-of" else {}
    place = "geometry" if name == "flip" else "distort"
    size = size_for(name)
    played = game(
        views={"size": size, "scale": [0.4, 1.0], place: [{"name": name, **changes, "p": 1.0}]}
    )
    with closing(played.loader):
        batch = played.views(played.loader.crops(range(8), 0), 0, 0)
    for view in batch.views:
        assert view.image.shape == (8, 1, *size)
        assert view.image.isfinite().all()
        assert (view.image >= 0).all()
        assert (view.image <= 1).all()
        assert place == "geometry" or not torch.equal(view.image, view.crop)
