"""Two and three processes train as one does."""

from __future__ import annotations

from typing import Any

import pytest

from dira_core.build import seeded
from dira_core.plugins import installed
from dira_core.roles import Backbone, Source
from dira_core.testing import TinyBackbone, TinySource, check_world_size

DISCRIMINATORS = installed().names("discriminator")
ACCUMULATE = 2


def parts() -> tuple[Backbone, Source]:
    with seeded(1, "backbone"):
        return TinyBackbone(), TinySource(120)


def recipe(name: str, **train: Any) -> dict[str, Any]:
    """Return a whole trio whose wide layers and long queues are cut to 16."""
    options = installed().find("discriminator", name).options.model_fields
    narrow = {k: 16 for k, f in options.items() if isinstance(f.default, int) and f.default > 100}
    return {
        "seed": 1,
        "data": {"name": "phantom", "n": 120},
        "backbone": "resnet18",
        "discriminator": {"name": name, **narrow},
        "restorer": {"name": "unet", "widths": [8, 8, 8]},
        "adversary": {"name": "patchgan", "widths": [4, 4, 4, 4]},
        "views": {"size": 32, "distort": ["inner-cutout"]},
        # of steps in proportion to the gradients, rounding stays rounding
        "optimizer": {"name": "sgd", "lr": 0.001, "lr_batch": "none"},
        "critic_optimizer": {"name": "sgd", "lr": 0.001, "lr_batch": "none"},
        "train": {"batch_size": 12, **train},
    }


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_processes_train_as_one_does(name: str, strategy: str) -> None:
    values = recipe(name, strategy=strategy, accumulate=ACCUMULATE)
    check_world_size(values, parts, processes=2)
