"""Two and three processes train as one does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from dira_core import Discriminator, Encodings, Objective, Trio
from dira_core.build import seeded
from dira_core.plugins import installed
from dira_core.roles import Backbone, Source
from dira_core.testing import TinyBackbone, TinySource, check_world_size

CASES = [
    *itertools.product(installed().names("discriminator"), ["ddp"], [2]),
    *itertools.product(installed().names("discriminator"), ["fsdp"], [1]),
    *itertools.product(["mocov2", "barlow", "simsiam"], ["ddp"], [1]),
    *itertools.product(["mocov2", "barlow", "simsiam"], ["fsdp"], [2]),
]
"""Discriminator, strategy, micro-batches."""


def parts(accumulate: int, dims: int = 2) -> Callable[[], tuple[Backbone, Source]]:
    """Return what builds a backbone, and images with words for five steps."""

    def build() -> tuple[Backbone, Source]:
        source = TinySource(60 * accumulate, dims=dims)
        source.words = source.labels
        with seeded(1, "backbone"):
            return TinyBackbone(dims=dims), source

    return build


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
        # memory in another layout is added up in another order
        "train": {"batch_size": 12, "channels_last": False, **train},
    }


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="12 images cannot be split among 5 .* that 5 divides"):
        check_world_size(recipe("simsiam"), parts(1), processes=5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy", "accumulate"), CASES)
def test_two_processes_train_as_one_does(name: str, strategy: str, accumulate: int) -> None:
    values = recipe(name, strategy=strategy, accumulate=accumulate)
    dims = installed().find("discriminator", name).dims
    if 2 not in dims:
        values |= {"data": {"name": "phantom3d", "n": 120}, "backbone": "unet3d"}
        values["views"]["size"] = 16
    double = 2 in dims  # volumes in float64 take minutes
    check_world_size(values, parts(accumulate, min(dims)), double=double)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_three_processes_train_as_one_does_in_float32(strategy: str) -> None:
    values = recipe("mocov2", strategy=strategy, accumulate=2)
    check_world_size(values, parts(2), processes=3, double=False)


class Local(Discriminator):
    """Square what it sees of its own process, and of none of the others."""

    n_views = 1

    def forward(self, encodings: Encodings) -> Objective:
        rows = encodings[0].pooled
        return Objective((rows - rows.mean(0)).square().sum())


@pytest.mark.slow
def test_a_loss_that_forgets_the_other_processes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dira_core.worlds.build_trio", lambda recipe, own: Trio(own, Local()))
    with pytest.raises(ValueError, match="of rank 0 of 2 differs by"):
        check_world_size(recipe("simsiam"), parts(1))
