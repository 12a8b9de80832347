"""Training that goes wrong with finite numbers is noticed; what goes well is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import small_settings, small_trio
from torch import Tensor, nn

from dira_core import Adversary, Discriminator, Encodings, Objective, Pyramid, Restorer, View
from dira_core.api import pretrain
from dira_core.build import build_trio, seeded
from dira_core.layering import Layer
from dira_core.lines import read_lines
from dira_core.plugins import installed
from dira_core.resolving import resolve
from dira_core.testing import TinyBackbone, TinySource
from dira_core.trio import Trio

pytestmark = pytest.mark.faults

MEASURED = {"every": 8}


class Constant(Discriminator):
    """Every image has the same embedding."""

    def forward(self, encodings: Encodings) -> Objective:
        pooled = encodings[0].pooled
        return Objective(pooled.mean(), embedding=1 + 1e-6 * pooled)


class Line(Discriminator):
    """Embeddings are far from each other, and all on one line."""

    def forward(self, encodings: Encodings) -> Objective:
        pooled = encodings[0].pooled
        sign = torch.tensor([1.0, -1.0]).repeat(len(pooled))[: len(pooled), None]
        return Objective(pooled.mean(), embedding=sign.expand_as(pooled))


class Winner(Adversary):
    """A critic that is always right."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.scale * image

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return 1e-6 * (real.mean() - fake.mean()).square()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return fake.mean()


class Grey(Restorer):
    """Restore every image to one and the same."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def forward(self, pyramid: Pyramid) -> Tensor:
        return self.level.sigmoid().expand(len(pyramid[0]), 1, 16, 16)

    def distance(self, restored: Tensor, view: View) -> Tensor:
        return (restored - view.crop).abs().mean()


def spiking() -> Trio:
    return small_trio()


def collapsed() -> Trio:
    trio = small_trio()
    trio.discriminator = Constant()
    return trio


def on_a_line() -> Trio:
    trio = small_trio()
    trio.discriminator = Line()
    return trio


def won() -> Trio:
    trio = small_trio()
    trio.adversary = Winner()
    return trio


def grey() -> Trio:
    trio = small_trio()
    trio.restorer = Grey()
    return trio


def alarms(folder: Path) -> dict[str, tuple[int, int]]:
    """Return since which step each alarm was true, and when it was raised."""
    lines = [line for line in read_lines(folder / "metrics.jsonl") if "alarm" in line]
    return {line["alarm"]: (line["since"], line["step"]) for line in lines}


@pytest.mark.parametrize(
    ("trio", "alarm"),
    [
        (spiking, "loss-spike"),
        (collapsed, "collapse"),
        (on_a_line, "collapse-rank"),
        (won, "critic-won"),
        (grey, "restored-is-the-mean"),
    ],
)
def test_what_goes_wrong_is_noticed_within_50_steps(
    tmp_path: Path, trio: Callable[[], Trio], alarm: str
) -> None:
    changes: dict[str, Any] = {"train": {"epochs": 8}, "health": MEASURED}
    if trio is spiking:
        changes["optimizer"] = {"name": "adamw", "lr": 1e-3 * 1e4, "lr_batch": "none"}
    pretrain(trio(), TinySource(24), small_settings(**changes), tmp_path / "run")
    found = alarms(tmp_path / "run")
    assert alarm in found
    assert found[alarm][1] <= 50
    if trio is spiking:
        assert found[alarm][1] - found[alarm][0] < 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", installed().names("discriminator"))
def test_a_run_that_goes_well_raises_no_alarm(tmp_path: Path, name: str, seed: int) -> None:
    options = installed().find("discriminator", name).options.model_fields
    narrow = {k: 16 for k, f in options.items() if isinstance(f.default, int) and f.default > 100}
    values = {
        "seed": seed,
        "data": {"name": "phantom", "n": 48},
        "backbone": "resnet18",
        "discriminator": {"name": name, **narrow},
        "restorer": {"name": "unet", "widths": [8, 8, 8]},
        "adversary": {"name": "patchgan", "widths": [4, 8, 8, 8]},
        "views": {"size": 32, "distort": ["inner-cutout"]},
        "train": {"epochs": 10, "batch_size": 8, "precision": "fp32"},
        "log": {"every": 1, "probe": False},
        "health": MEASURED,
    }
    dims = min(installed().find("discriminator", name).dims)
    if dims == 3:
        volumes = {"data": {"name": "phantom3d", "n": 48}, "backbone": "unet3d"}
        values |= {**volumes, "views": {"size": 16, "distort": ["inner-cutout"]}}
    recipe = resolve([Layer("test", values)]).recipe
    with seeded(seed, "backbone"):
        backbone = TinyBackbone(dims=dims)
    source = TinySource(48, dims=dims)
    source.words = source.labels
    pretrain(build_trio(recipe, backbone), source, recipe, tmp_path / "run")
    assert alarms(tmp_path / "run") == {}
