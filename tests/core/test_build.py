"""From a recipe to live parts: initial weights, refusals, memory layout, every mix of roles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from distributions import offered
from parts import small_settings, small_trio

from dira_core import Options
from dira_core.build import (
    axes,
    build_players,
    build_source,
    build_trackers,
    build_trio,
    place,
    seeded,
)
from dira_core.components import Choice
from dira_core.data.images import read_image
from dira_core.errors import PluginError, RecipeError
from dira_core.game import Game
from dira_core.plugins import make
from dira_core.precision import Precision
from dira_core.recipe import Recipe
from dira_core.testing import TinySource, choice
from dira_core.trio import Trio
from dira_core.view_options import Override, Views

KIT = """
from pydantic import Field
import numpy as np
from torch import nn
from dira_core import Backbone, Component, Options, RecipeError, Restorer, Source, hookimpl

def unhappy(options, backbone):
    raise KeyError("weights")

def wordy(options, backbone):
    raise RuntimeError("one\\ntwo")

def silent(options, channels, dims):
    class Silent(Backbone):
        def forward(self, images):
            return [images]
    return Silent()

class Listed(Source):
    def __init__(self, labels):
        self.labels = labels
    def __len__(self):
        return 3
    def read(self, index):
        return index
    def name(self, index):
        return "x"
    def fingerprint(self):
        return "y"

@hookimpl
def dira_backbones():
    yield Component("silent", Options, silent, summary="says nothing of itself")

@hookimpl
def dira_sources():
    yield Component("listed", Options, lambda o: Listed([0, 1, 0]), summary="no array")
    yield Component("short", Options, lambda o: Listed(np.zeros(2, int)), summary="one short")
    yield Component("imageless", Options, lambda o: Listed(None), summary="reads numbers")

class Idle(Restorer):
    n_restored = 0
    def forward(self, pyramid):
        return pyramid[0]
    def distance(self, restored, view):
        return restored.mean()

def choosy(options, backbone):
    raise RecipeError("sizes below 100 px do not work")

@hookimpl
def dira_restorers():
    yield Component("unhappy", Options, unhappy, summary="raises")
    yield Component("choosy", Options, choosy, summary="raises")
    yield Component("wordy", Options, wordy, summary="raises")
    yield Component("nothing", Options, lambda *parts: None, summary="forgets to return")
    yield Component("foreign", Options, lambda *parts: nn.Linear(1, 1), summary="no Restorer")
    yield Component("idle", Options, lambda *parts: Idle(), summary="restores no view")
    yield Component("deep", Options, print, summary="volumes alone", dims=(3,))
"""


@pytest.fixture
def _kit(tmp_path: Path) -> Iterator[None]:
    with offered(tmp_path, "kit", KIT):
        yield


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "data": {"name": "phantom", "n": 16},
        "backbone": "resnet18",
        "discriminator": {"name": "simsiam", "dim": 16, "hidden": 8},
        "restorer": {"name": "unet", "widths": [8, 8, 8, 8, 8]},
        "adversary": {"name": "patchgan", "widths": [4, 8, 8, 8]},
        "views": {"size": 32},
        "train": {"batch_size": 4, "precision": "fp32"},
    }
    return Recipe.model_validate(values | changes)


def weights(module: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    assert module is not None
    return dict(module.state_dict())


def same(a: torch.nn.Module | None, b: torch.nn.Module | None) -> bool:
    x, y = weights(a), weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


@pytest.mark.parametrize(("size", "batch"), [(32, 1), (32, 2), (48, 1)])
def test_a_batch_norm_with_one_number_a_channel_is_refused(size: int, batch: int) -> None:
    train = {"batch_size": batch, "precision": "fp32"}
    chosen = recipe(discriminator="none", adversary="none", views={"size": size}, train=train)
    precision = Precision("fp32", torch.device("cpu"))
    if (size, batch) == (32, 1):
        with pytest.raises(RecipeError, match="a single cell .32 px by stride 32."):
            build_players(build_trio(chosen), chosen, precision)
        return
    net = build_players(build_trio(chosen), chosen, precision)[0].module
    assert net.backbone(torch.rand(batch, 1, size, size))[-1].isfinite().all()


@pytest.mark.parametrize("without", ["discriminator", "adversary"])
def test_leaving_a_role_out_changes_no_other_roles_initial_weights(without: str) -> None:
    full, rest = build_trio(recipe()), build_trio(recipe(**{without: "none"}))
    assert getattr(rest, without) is None
    for role in {"backbone", "discriminator", "restorer", "adversary"} - {without}:
        assert same(getattr(full, role), getattr(rest, role)), role


def test_initial_weights_depend_on_the_seed_and_not_on_what_torch_drew_before() -> None:
    first = build_trio(recipe())
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = build_trio(recipe())
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first.backbone, again.backbone)
    assert same(first.adversary, again.adversary)
    assert not same(first.backbone, build_trio(recipe(seed=1)).backbone)


def test_numbers_of_different_names_differ() -> None:
    drawn = []
    for name in ("backbone", "discriminator"):
        with seeded(0, name):
            drawn.append(torch.rand(4))
    assert not torch.equal(*drawn)


@pytest.mark.usefixtures("_kit")
def test_a_component_for_other_axes_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="restorer 'deep' does not work on 2-D images"):
        build_trio(recipe(restorer="deep"))


def test_where_a_source_has_images_and_volumes_the_backbone_says_which(tmp_path: Path) -> None:
    given = recipe(data={"name": "folder", "path": str(tmp_path)})
    assert axes(given) == 2
    deep = {"backbone": "unet3d", "restorer": "unet"}
    both = recipe(data={"name": "folder", "path": str(tmp_path)}, **deep)
    assert axes(both) == 3
    sized = recipe(**deep, data={"name": "phantom3d"}, views={"size": [16, 32, 32]})
    assert axes(sized) == 3
    assert sized.views.of(0).size == (16, 32, 32)
    with pytest.raises(RecipeError, match="backbone 'resnet18' does not work on 3-D"):
        axes(recipe(data={"name": "phantom3d"}))
    with pytest.raises(RecipeError, match="3 sides, the images have 2 axes"):
        axes(recipe(views={"size": [16, 32, 32]}))


def test_a_view_with_a_smaller_side_shrinks_every_axis() -> None:
    views = Views(size=(16, 32, 64), each=[Override(side=0.5)])
    assert [views.of(view).size for view in range(2)] == [(8, 16, 32), (16, 32, 64)]


@pytest.mark.usefixtures("_kit")
def test_a_component_that_cannot_be_built_is_named_with_its_cause() -> None:
    with pytest.raises(PluginError, match=r"restorer 'unhappy' .*KeyError: 'weights'") as caught:
        build_trio(recipe(restorer="unhappy"))
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(RecipeError, match="^sizes below 100 px do not work$"):
        build_trio(recipe(restorer="choosy"))


@pytest.mark.usefixtures("_kit")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "restorer 'nothing' was built as None, which is no Restorer: report"),
        ("foreign", "restorer 'foreign' was built as Linear.*, which is no Restorer: report"),
        ("idle", "^Idle of '.*': n_restored is 0, not a number of views from 1 on"),
        ("wordy", r"restorer 'wordy' cannot be built \(RuntimeError: one\): see"),
    ],
)
def test_what_is_built_must_be_of_its_kind_and_is_named_in_one_line(name: str, said: str) -> None:
    with pytest.raises(PluginError, match=said) as caught:
        build_trio(recipe(restorer=name))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_kit")
def test_a_backbone_that_does_not_say_its_channels_is_called_broken_itself() -> None:
    with pytest.raises(PluginError, match="^Silent of '.*': it must say its channels, strides"):
        build_trio(recipe(backbone="silent"))


@pytest.mark.usefixtures("_kit")
def test_a_source_whose_labels_do_not_fit_its_images_is_refused() -> None:
    with pytest.raises(PluginError, match="^Listed of '.*': `labels` .* 3 integers, got list"):
        build_source(recipe(data="listed"))
    with pytest.raises(PluginError, match=r"^Listed of '.*': `labels` .* 3 integers, got \(2,\)"):
        build_source(recipe(data="short"))


@pytest.mark.usefixtures("_kit")
def test_a_source_that_reads_something_else_than_an_image_is_named() -> None:
    with pytest.raises(PluginError, match=r"^Listed of .*: read\(\) returned int, not an Image"):
        read_image(build_source(recipe(data="imageless")), 0)


def test_a_component_nobody_offers_is_named() -> None:
    with pytest.raises(RecipeError, match="did you mean 'unet'"):
        make("restorer", Choice("unett", Options()), small_trio().backbone)


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_moves_weights_in_memory_and_changes_no_value(dims: int) -> None:
    conv = torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d
    torch.manual_seed(0)
    net = torch.nn.Sequential(conv(3, 4, 3), torch.nn.Linear(4, 2))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    parameters = list(net.parameters())
    place(net, torch.device("cpu"), channels_last=True)
    last = torch.channels_last if dims == 2 else torch.channels_last_3d
    assert net[0].weight.is_contiguous(memory_format=last)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    place(net, torch.device("cpu"), channels_last=False)


def test_source_and_trackers_are_those_of_the_recipe(tmp_path: Path) -> None:
    assert len(build_source(recipe())) == 16
    assert build_trackers(recipe(), tmp_path) == []


MIXES = [
    mix
    for mix in itertools.product(["simsiam", None], ["unet", None], ["patchgan", None])
    if (mix[0] or mix[1]) and (mix[1] or not mix[2])
]


@pytest.mark.parametrize(("disc", "res", "adv"), MIXES)
def test_every_mix_of_roles_trains(disc: str | None, res: str | None, adv: str | None) -> None:
    trio = small_trio()
    mix = Trio(
        trio.backbone,
        trio.discriminator if disc else None,
        trio.restorer if res else None,
        trio.adversary if adv else None,
    )
    before = [p.detach().clone() for p in trio.backbone.parameters()]
    trainer = Game(mix, TinySource(24), small_settings()).trainer
    steps = trainer.steps()
    for _ in range(2):
        metrics = trainer.train_step(next(steps))
        trainer.step += 1
    named = {"dis": disc, "res": res, "adv": adv, "critic": adv, "total": True}
    assert {key for key in metrics if key.startswith("losses/")} == {
        f"losses/{name}" for name, there in named.items() if there
    }
    assert all(torch.tensor(value).isfinite() for value in metrics.values())
    gradients = [p.grad for p in mix.backbone.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    moved = zip(mix.backbone.parameters(), before, strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)


def test_a_mix_without_anything_to_train_is_refused() -> None:
    trio = small_trio()
    with pytest.raises(RecipeError, match="nothing to train"):
        Game(Trio(trio.backbone), TinySource(24), small_settings())
    with pytest.raises(RecipeError, match="choose a restorer"):
        Game(
            Trio(trio.backbone, trio.discriminator, None, trio.adversary),
            TinySource(24),
            small_settings(),
        )


def test_a_chosen_component_is_built_with_its_options() -> None:
    head = make("discriminator", choice("discriminator", "simsiam", dim=6), small_trio().backbone)
    assert any(6 in p.shape for p in head.parameters())


@pytest.mark.parametrize("sync_norm", [False, True])
def test_one_image_is_too_few_for_a_batch_norm_of_embeddings(sync_norm: bool) -> None:
    train = {"batch_size": 1, "precision": "fp32", "sync_norm": sync_norm}
    alone = recipe(train=train)
    with pytest.raises(RecipeError, match="a batch norm of embeddings needs at least 2 images"):
        Game(build_trio(alone), build_source(alone), alone)


@pytest.mark.parametrize(("batch", "said"), [(2, True), (3, True), (4, False)])
def test_a_run_says_that_batch_norms_see_few_images(batch: int, said: bool) -> None:
    few = recipe(train={"batch_size": batch, "precision": "fp32"})
    manner = Game(build_trio(few), build_source(few), few).manner()
    assert (f"batch norms see {batch} images at once" in manner) == said
    alone = few.model_copy(update={"discriminator": None})
    assert "batch norms" not in Game(build_trio(alone), build_source(alone), alone).manner()


@pytest.mark.parametrize("has", [False, True])
def test_a_run_says_that_a_processor_has_no_bf16(
    monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    half = recipe(train={"batch_size": 4, "precision": "bf16"}, views={"size": 64})
    manner = Game(build_trio(half), build_source(half), half).manner()
    assert ("no instructions for bf16" in manner) != has
