"""The presets: each is a whole recipe, and they differ where paper, public code and we differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dira_core.layering import gather
from dira_core.plugins import installed
from dira_core.recipe import Recipe, resolve
from dira_paper import dira_presets

NAMES = [preset.name for preset in dira_presets()]


@pytest.fixture(autouse=True)
def _ours_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DIRA_PLUGINS", "distortions,paper,patchgan,simsiam,unet")
    installed.cache_clear()
    yield
    installed.cache_clear()


def recipe(preset: str, *assignments: str) -> Recipe:
    return resolve(gather(preset=preset, data="phantom", assignments=assignments)).recipe


def names(choices: list[Any]) -> list[str]:
    return [choice.name for choice in choices]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_a_whole_recipe_but_for_the_data(name: str) -> None:
    got = recipe(name)
    roles = (got.discriminator, got.restorer, got.adversary)
    assert names(list(roles)) == ["simsiam", "unet", "patchgan"]
    assert got.weights.model_dump() == {"dis": 1.0, "res": 10.0, "adv": 0.001}


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_trio_can_be_overridden(name: str) -> None:
    off = [f"{role}=none" for role in ("restorer", "adversary")]
    got = recipe(name, *off, "backbone=resnet34", "discriminator.dim=64")
    assert (got.restorer, got.adversary, got.backbone.name) == (None, None, "resnet34")


def test_the_four_presets_are_those_the_engine_takes_by_default_and_two_more() -> None:
    assert sorted(NAMES) == ["fixed", "paper", "released", "tiny"]
    assert resolve(gather()).recipe.data.name == "phantom"


@pytest.mark.parametrize(
    ("name", "aligned"), [("fixed", True), ("tiny", True), ("paper", False), ("released", False)]
)
def test_the_flip_is_aligned_or_has_to_be_undone(name: str, aligned: bool) -> None:
    views = recipe(name).views
    assert ("flip" in names(views.geometry)) is aligned
    assert ("flip" in names(views.appearance)) is not aligned


@pytest.mark.parametrize("name", NAMES)
def test_one_crop_in_three_is_not_distorted(name: str) -> None:
    [one_of] = recipe(name).views.distort
    options = one_of.options.model_dump()
    assert [each["name"] for each in options["of"]] == [
        "inner-cutout",
        "outer-cutout",
        "patch-swap",
    ]
    assert options["weights"] == [0.30, 0.05, 0.30]
    assert options["of"][2]["disjoint"] is (name != "released")


@pytest.mark.parametrize(
    ("name", "loss"), [("fixed", "lsgan"), ("released", "lsgan"), ("paper", "bce")]
)
def test_the_adversarial_loss_is_that_of_code_or_paper(name: str, loss: str) -> None:
    adversary = recipe(name).adversary
    assert adversary is not None
    assert adversary.options.model_dump()["loss"] == loss


@pytest.mark.parametrize("name", NAMES)
def test_the_critic_is_trained_as_the_paper_says(name: str) -> None:
    critic = recipe(name).critic_optimizer
    assert (critic.name, critic.lr, critic.betas) == ("adam", 2e-4, (0.5, 0.999))
    assert (critic.lr_batch, critic.schedule, critic.weight_decay) == (None, "constant", 0.0)


def test_the_rate_is_the_discriminators_own_except_where_the_public_code_fixes_it() -> None:
    own = dict(installed().find("discriminator", "simsiam").defaults["optimizer"])
    for name in ("fixed", "paper"):
        assert (recipe(name).optimizer.lr, recipe(name).optimizer.lr_batch) == (own["lr"], 256)
    released = recipe("released").optimizer
    assert (released.name, released.lr, released.lr_batch) == ("sgd", 0.03, None)


def test_only_the_tiny_preset_is_small_and_brings_data() -> None:
    sizes = {name: recipe(name).views.size for name in NAMES}
    assert sizes == {"fixed": 224, "paper": 224, "released": 224, "tiny": 64}
    assert [p.name for p in dira_presets() if "data" in p.recipe] == ["tiny"]
