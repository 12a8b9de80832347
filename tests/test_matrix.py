"""Every Discriminator trains in every trio, by the same road."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
import torch

from dira_core import gather, resolve
from dira_core.build import build_source, build_trio
from dira_core.errors import RecipeError
from dira_core.game import Game
from dira_core.layering import Layer
from dira_core.plugins import installed

DISCRIMINATORS = installed().names("discriminator")

OF_VOLUMES = {"rubik", "transvw", "rotation3d"}

IMAGES: dict[str, Any] = {
    "data": {"name": "phantom", "n": 16},
    "backbone": "resnet18",
    "restorer": {"name": "unet", "widths": [8, 8, 8, 8, 8]},
    "adversary": {"name": "patchgan", "widths": [4, 4, 4, 4]},
    "views": {"size": 48, "distort": ["inner-cutout"]},
}
VOLUMES: dict[str, Any] = {
    "data": {"name": "phantom3d", "n": 16, "size": [24, 24, 24]},  # its findings are its words
    "backbone": {"name": "unet3d", "width": 4},
    "restorer": {"name": "unet", "widths": [4, 4, 4]},
    "adversary": {"name": "patchgan", "widths": [4, 4]},
    "views": {"size": 16, "distort": ["inner-cutout"]},
}


def small(name: str, restorer: str, adversary: str) -> list[Layer]:
    """Return a recipe of two steps whose wide layers and long queues are cut to 16."""
    options = installed().find("discriminator", name).options.model_fields
    narrow = {k: 16 for k, f in options.items() if isinstance(f.default, int) and f.default > 100}
    values: dict[str, Any] = {
        "discriminator": {"name": name, **narrow},
        "train": {"batch_size": 8, "epochs": 1},
        **(VOLUMES if name in OF_VOLUMES else IMAGES),
    }
    for role, chosen in (("restorer", restorer), ("adversary", adversary)):
        if chosen == "none":
            values[role] = "none"
    return [*gather(preset="none"), Layer("test", values)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("restorer", "adversary"), [("none", "none"), ("unet", "none"), ("unet", "patchgan")]
)
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_two_steps_are_finite_and_reach_the_backbone(
    name: str, restorer: str, adversary: str
) -> None:
    recipe = resolve(small(name, restorer, adversary)).recipe
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    trainer = game.trainer
    before = {k: p.detach().clone() for k, p in game.trio.backbone.named_parameters()}
    with closing(game.loader):
        trainer.players[0].epoch_started(trainer.progress, game.features())
        for pieces in trainer.steps():
            trainer.train_step(pieces)
            trainer.step += 1
    assert trainer.step == 2
    for key, parameter in game.trio.backbone.named_parameters():
        assert parameter.grad is not None
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_critic_without_a_restorer_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="an adversary judges restored images"):
        resolve(small(name, "none", "patchgan"))
