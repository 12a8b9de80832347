"""A plugin that raises in the middle of a run is named, with the place, the rank and the step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from crew import ended
from distributions import offered

from dira_core.api import run
from dira_core.errors import PluginError, ResourceError
from dira_core.layering import Layer
from dira_core.recipe import Recipe
from dira_core.rehearsal import rehearse
from dira_core.resolving import resolve

CODE = """
import torch
import torch.distributed as dist

from dira_core import (
    Adversary, Component, Discriminator, Distortion, DistortionOptions, Objective, Options,
    Restorer, hookimpl, lsgan_critic, lsgan_generator, mean_absolute,
)


class At(Options):
    at: str = ""
    rank: int = 0
    most: int = 99


class DistortionAt(DistortionOptions):
    at: str = ""


def strike(options, place):
    rank = dist.get_rank() if dist.is_initialized() else 0
    if options.at == place and rank == getattr(options, "rank", 0):
        {}["on purpose"]


class Dis(Discriminator):
    n_views = 1

    def __init__(self, options, backbone):
        super().__init__()
        self.options = options
        self.scale = torch.nn.Parameter(torch.ones(()))

    def prepare(self, n_images):
        strike(self.options, "prepare")

    def param_groups(self):
        strike(self.options, "param_groups")
        return super().param_groups()

    def epoch_started(self, progress, features):
        strike(self.options, "epoch_started")

    def after_step(self, progress):
        strike(self.options, "after_step")

    def forward(self, encodings):
        pooled = encodings[0].pooled
        if self.training and len(pooled) > self.options.most:
            torch.empty(2**60)
        if self.training:
            strike(self.options, "forward")
        return Objective(self.scale * pooled.square().mean())


class Res(Restorer):
    def __init__(self, options, backbone):
        super().__init__()
        self.options = options
        self.mix = torch.nn.Conv2d(backbone.channels[-1], backbone.in_channels, 1)

    def segments(self):
        strike(self.options, "segments")
        return []

    def forward(self, pyramid):
        if self.training:
            strike(self.options, "forward")
        return torch.nn.functional.interpolate(self.mix(pyramid[-1]), scale_factor=8).sigmoid()

    def distance(self, restored, view):
        if self.training:
            strike(self.options, "distance")
        return mean_absolute(restored, view.crop)


class Adv(Adversary):
    def __init__(self, options, channels, dims):
        super().__init__()
        self.options = options
        self.net = torch.nn.Conv2d(channels, 1, 4, 2)

    def forward(self, image, condition=None):
        strike(self.options, "forward")
        return self.net(image)

    def critic_loss(self, real, fake):
        strike(self.options, "critic_loss")
        return lsgan_critic(real, fake)

    def generator_loss(self, fake):
        strike(self.options, "generator_loss")
        return lsgan_generator(fake)

    def penalty(self, real, fake, condition):
        strike(self.options, "penalty")


class Dist(Distortion):
    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, images, draws):
        strike(self.options, "forward")
        return images


def source(options):
    from dira_core.testing import TinySource
    return TinySource(16)

def backbone(options, channels, dims):
    from dira_core.testing import TinyBackbone
    return TinyBackbone(channels, dims)

@hookimpl
def dira_discriminators():
    yield Component("dis", At, Dis, summary="raises")

@hookimpl
def dira_restorers():
    yield Component("res", At, Res, summary="raises")

@hookimpl
def dira_adversaries():
    yield Component("adv", At, Adv, summary="raises")

@hookimpl
def dira_distortions():
    yield Component("dist", DistortionAt, Dist, summary="raises", dims=(2,))

@hookimpl
def dira_sources():
    yield Component("few", Options, source, summary="in memory", dims=(2,))

@hookimpl
def dira_backbones():
    yield Component("narrow", Options, backbone, summary="three convolutions")
"""

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module", autouse=True)
def _plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with offered(tmp_path_factory.mktemp("plugin"), "raising", CODE):
        yield


def recipe(role: str = "", at: str = "", batch_size: int = 4, **options: int) -> Recipe:
    """Return a run of two epochs whose `role` raises in its method `at`."""
    roles = ["discriminator", "restorer", "adversary"]
    chosen = {name: {"name": name[:3]} for name in roles}
    if role in chosen:
        chosen[role] |= {"at": at, **options}
    distort = {"name": "dist", "at": at if role == "distortion" else ""}
    values = {
        "data": "few",
        "backbone": "narrow",
        "views": {"size": 16, "distort": [distort]},
        "train": {"epochs": 2, "batch_size": batch_size, "precision": "fp32", "recompute": True},
        "log": {"every": 1, "probe": False},
        **chosen,
    }
    return resolve([Layer("test", values)]).recipe


@pytest.mark.parametrize(
    ("role", "at"),
    [
        *[("discriminator", at) for at in ("prepare", "param_groups", "epoch_started")],
        *[("discriminator", at) for at in ("forward", "after_step")],
        *[("restorer", at) for at in ("segments", "forward", "distance")],
        *[("adversary", at) for at in ("forward", "critic_loss", "generator_loss", "penalty")],
        ("distortion", "forward"),
    ],
)
def test_whatever_method_raises_the_plugin_its_function_and_the_step_are_named(
    tmp_path: Path, role: str, at: str
) -> None:
    with pytest.raises(PluginError) as caught:
        run(recipe(role, at), tmp_path / "run")
    said = str(caught.value)
    assert said.startswith("the plugin 'raising', in strike (fake_raising.py:")
    assert "raised KeyError: 'on purpose' at " in said
    assert caught.value.exit_code == 4
    assert isinstance(caught.value.__cause__, KeyError)
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status == {**status, "status": "failed", "reason": said}


def test_one_of_two_processes_that_raises_ends_both_with_its_error(tmp_path: Path) -> None:
    chosen = recipe("discriminator", "after_step", rank=1)
    for left in ended(tmp_path / "crew", lambda rank: run(chosen, tmp_path / "run")):
        assert left.code == 4
        assert left.said.startswith("the plugin 'raising', in ")
        assert " raised KeyError: 'on purpose' at step 0 on rank 1: report it" in left.said


def test_a_rehearsal_finds_the_largest_batch_that_fits_by_halving(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught:
        rehearse(recipe("discriminator", most=3, batch_size=8), tmp_path)
    assert str(caught.value) == (
        "a batch of 8 images does not fit into memory, 2 do (found by halving): use "
        "--batch-size 2 --set train.accumulate=4 (the same global batch)"
    )


def test_a_rehearsal_says_where_not_even_one_image_fits(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="not even one image at a time fits"):
        rehearse(recipe("discriminator", most=0, batch_size=4), tmp_path)
