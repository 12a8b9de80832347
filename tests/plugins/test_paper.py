"""The presets: each is a whole recipe, and they differ where paper, public code and we differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dira_barlow
import dira_moco
import dira_simsiam
from dira_core.components import Choice
from dira_core.draws import Draws
from dira_core.layering import gather
from dira_core.operations import build_distortion
from dira_core.optim import base_lr, lr_factor
from dira_core.recipe import Recipe
from dira_core.resolving import Resolved, resolve
from dira_core.types import Progress
from dira_paper import dira_presets

PRESETS = {preset.name: preset.recipe for preset in dira_presets()}
BASES = ["paper", "released", "fixed"]
METHODS = ["mocov2", "barlow", "simsiam"]
TRIOS = [*BASES, *(f"{base}/{method}" for base in BASES for method in METHODS)]
TRIOS += ["stepwise", "tiny", "tiny3d"]
WITHOUT_DISCRIMINATOR = ["context-encoder", "genesis"]


def resolved(preset: str, *assignments: str) -> Resolved:
    data = "phantom3d" if preset == "tiny3d" else "phantom"
    return resolve(gather(preset=preset, data=data, assignments=assignments))


def recipe(preset: str, *assignments: str) -> Recipe:
    return resolved(preset, *assignments).recipe


def names(choices: list[Any]) -> list[str]:
    return [choice.name for choice in choices]


def roles(got: Recipe) -> list[str | None]:
    chosen = (got.discriminator, got.restorer, got.adversary)
    return [role.name if role else None for role in chosen]


def method(preset: str) -> str:
    base, _, own = preset.partition("/")
    return own or ("mocov2" if base == "released" else "simsiam")


def test_every_preset_is_looked_at_here() -> None:
    assert sorted([*TRIOS, *WITHOUT_DISCRIMINATOR]) == sorted(PRESETS)


@pytest.mark.parametrize("name", TRIOS)
def test_a_preset_of_the_trio_is_a_whole_recipe_but_for_the_data(name: str) -> None:
    got = recipe(name)
    assert roles(got) == [method(name), "unet", "patchgan"]
    assert got.weights.model_dump() == {"dis": 1.0, "res": 10.0, "adv": 0.001, "ramps": {}}
    assert got.init is None


@pytest.mark.parametrize("name", TRIOS)
def test_the_whole_trio_can_be_overridden(name: str) -> None:
    off = [f"{role}=none" for role in ("restorer", "adversary")]
    got = recipe(name, *off, "stages=[]", "backbone=resnet34", "discriminator.dim=64")
    assert (got.restorer, got.adversary, got.backbone.name) == (None, None, "resnet34")


@pytest.mark.parametrize("name", TRIOS)
@pytest.mark.parametrize("mode", ["di", "dir", "dira"])
def test_a_mode_leaves_the_views_alone(name: str, mode: str) -> None:
    layers = gather(preset=name, data="phantom", mode=mode)
    got = resolve(layers).recipe
    kept = {"di": 1, "dir": 2, "dira": 3}[mode]
    assert roles(got) == [*[method(name), "unet", "patchgan"][:kept], *[None] * (3 - kept)]
    assert got.views == recipe(name).views


@pytest.mark.parametrize("base", BASES)
def test_a_base_without_a_method_is_one_of_its_own(base: str) -> None:
    assert recipe(base) == recipe(f"{base}/{method(base)}")


def test_the_engine_takes_fixed_with_data_and_tiny_without() -> None:
    assert resolve(gather(data="phantom")).recipe == recipe("fixed")
    assert resolve(gather()).recipe.data.name == "phantom"


def test_only_the_tiny_presets_are_small_and_bring_data() -> None:
    tiny = {"tiny", "tiny3d"}
    assert {name for name in PRESETS if recipe(name).views.size != 224} == tiny
    assert {name for name, said in PRESETS.items() if "data" in said} == tiny


@pytest.mark.parametrize("name", [*TRIOS, *WITHOUT_DISCRIMINATOR])
def test_the_flip_is_aligned_or_has_to_be_undone(name: str) -> None:
    aligned = name.partition("/")[0] not in ("paper", "released")
    got = recipe(name).views
    for views in (got, got.of(0), got.of(1)):
        assert ("flip" in names(views.geometry)) is aligned
        assert ("flip" in names(views.appearance)) is not aligned


@pytest.mark.parametrize("name", TRIOS)
def test_one_crop_in_three_is_not_distorted(name: str) -> None:
    [one_of] = recipe(name).views.distort
    options = one_of.options.model_dump()
    assert names_of(options["of"]) == ["inner-cutout", "outer-cutout", "patch-swap"]
    assert options["weights"] == [0.30, 0.05, 0.30]
    assert options["of"][2]["disjoint"] is not name.startswith("released")


@pytest.mark.parametrize("name", [name for name in TRIOS if not name.startswith("tiny")])
def test_crops_and_jitter_are_those_of_the_public_code_or_milder(name: str) -> None:
    mended = name.startswith(("fixed", "stepwise"))
    views = recipe(name).views
    jitter = views.appearance[0].options.model_dump()
    assert views.scale == ((0.5, 1.0) if mended else (0.2, 1.0))
    assert jitter["brightness"] == jitter["contrast"] == (0.1 if mended else 0.4)


def names_of(dumped: list[dict[str, Any]]) -> list[str]:
    return [each["name"] for each in dumped]


@pytest.mark.parametrize("name", TRIOS)
def test_the_adversarial_loss_is_that_of_code_or_paper(name: str) -> None:
    adversary = recipe(name).adversary
    assert adversary is not None
    expected = "bce" if name.startswith("paper") else "lsgan"
    assert adversary.options.model_dump()["loss"] == expected


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "genesis"])
def test_the_critic_is_trained_as_the_paper_says(name: str) -> None:
    critic = recipe(name).critic_optimizer
    assert (critic.name, critic.lr, critic.betas) == ("adam", 2e-4, (0.5, 0.999))
    assert (critic.lr_batch, critic.schedule, critic.weight_decay) == (None, "constant", 0.0)


@pytest.mark.parametrize("base", ["paper", "fixed"])
@pytest.mark.parametrize("plugin", [dira_moco, dira_barlow, dira_simsiam])
def test_the_optimizer_is_the_one_the_method_brings_along(base: str, plugin: Any) -> None:
    [own] = plugin.dira_discriminators()
    got = recipe(f"{base}/{own.name}").optimizer.model_dump()
    expected = dict(own.defaults["optimizer"])
    if base == "paper" and own.name != "barlow":
        expected |= {"lr_batch": 256, "warmup_epochs": 0.0}
    assert {key: got[key] for key in expected} == expected


@pytest.mark.parametrize("base", ["paper", "released"])
@pytest.mark.parametrize(("method", "rate"), [("simsiam", 0.05), ("mocov2", 0.03)])
def test_methods_as_written_have_their_own_rate_from_the_first_step(
    base: str, method: str, rate: float
) -> None:
    optimizer = recipe(f"{base}/{method}").optimizer
    assert base_lr(optimizer, 256) == rate
    assert lr_factor(Progress(step=0, total_steps=100, epoch=0, epochs=10), optimizer) == 1.0


def test_only_the_published_method_has_the_rate_of_the_public_code_at_any_batch() -> None:
    optimizer = {each: recipe(f"released/{each}").optimizer for each in METHODS}
    assert (optimizer["mocov2"].lr, optimizer["mocov2"].lr_batch) == (0.03, None)
    assert {optimizer[each].lr_batch for each in ("barlow", "simsiam")} == {256}
    assert [optimizer[each].schedule for each in METHODS] == [
        "epoch-cosine",
        "cosine",
        "epoch-cosine",
    ]


@pytest.mark.parametrize("name", [name for name in TRIOS if name.startswith("released")])
def test_the_released_preset_is_dir_and_then_dira_in_batches_of_16(name: str) -> None:
    got = recipe(name)
    assert [stage.name for stage in got.stages] == ["dir", "dira"]
    assert [stage.inherit for stage in got.stages] == [["discriminator"]] * 2
    first, second = (got.at_stage(number) for number in range(2))
    assert roles(first) == [method(name), "unet", None]
    assert roles(second) == [method(name), "unet", "patchgan"]
    assert [(each.train.epochs, each.train.batch_size) for each in (first, second)] == [
        (1200, 256),
        (400, 16),
    ]
    assert first.optimizer == second.optimizer
    assert first.views == second.views


def test_the_stepwise_preset_adds_a_role_in_each_of_three_stages() -> None:
    got = recipe("stepwise")
    assert [stage.name for stage in got.stages] == ["di", "dir", "dira"]
    stages = [got.at_stage(number) for number in range(3)]
    assert [sum(role is not None for role in roles(each)) for each in stages] == [1, 2, 3]
    assert stages[2] == recipe("fixed")
    assert recipe("stepwise", "stages=[]") == recipe("fixed")


@pytest.mark.parametrize("name", [name for name in TRIOS if name not in ("stepwise",)])
def test_presets_that_do_not_speak_of_stages_have_none(name: str) -> None:
    assert bool(recipe(name).stages) is name.startswith("released")


@pytest.mark.parametrize("base", BASES)
def test_negatives_are_those_of_the_public_code_or_other_images_alone(base: str) -> None:
    discriminator = recipe(f"{base}/mocov2").discriminator
    assert discriminator is not None
    got = discriminator.options.model_dump()
    mended = base == "fixed"
    assert got["queue"] == (None if mended else 65536)
    assert got["others_only"] is mended
    assert got["key_norm"] == ("average" if mended else "batch")


@pytest.mark.parametrize("name", TRIOS)
def test_only_barlow_twins_as_written_has_unlike_views(name: str) -> None:
    views = recipe(name).views
    first, second = views.of(0).appearance, views.of(1).appearance
    if name != "paper/barlow":
        assert first == second == views.appearance
        return
    assert names(first) == ["intensity-jitter", "gaussian-blur", "flip"]
    assert names(second) == ["intensity-jitter", "gaussian-blur", "solarize", "flip"]
    assert [each.options.model_dump()["p"] for each in (first[1], second[1], second[2])] == [
        1.0,
        0.1,
        0.2,
    ]


@pytest.mark.parametrize("size", [32, 224])
def test_the_context_encoder_masks_the_central_square_of_every_image(size: int) -> None:
    masked = distorted("context-encoder", torch.ones(5, 1, size, size))
    expected = torch.ones(size, size)
    expected[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 0
    assert torch.equal(masked, expected.expand_as(masked))


def test_the_context_encoder_restores_the_masked_part_and_weighs_it_as_its_paper() -> None:
    got = recipe("context-encoder")
    assert roles(got) == [None, "unet", "patchgan"]
    assert got.restorer is not None
    assert got.restorer.options.model_dump()["region"] == "distorted"
    assert (got.weights.res, got.weights.adv) == (0.999, 0.001)
    assert got.views.appearance == []


def test_models_genesis_restores_alone_what_may_be_shuffled_bent_and_painted() -> None:
    got = recipe("genesis")
    assert roles(got) == [None, "unet", None]
    shuffle, bend, paint = (each.options.model_dump() for each in got.views.distort)
    assert [shuffle["p"], bend["p"], sum(paint["weights"])] == [0.5, 0.9, pytest.approx(0.9)]
    assert names_of(paint["of"]) == ["noise-inpaint", "noise-outpaint"]
    assert paint["weights"][1] == pytest.approx(4 * paint["weights"][0])
    assert got.views.appearance == []
    assert (got.optimizer.name, got.optimizer.lr, got.optimizer.lr_batch) == ("sgd", 1.0, None)


def distorted(preset: str, images: torch.Tensor) -> torch.Tensor:
    """Apply the one distortion of a preset to images, each certainly."""
    [choice] = recipe(preset).views.distort
    assert isinstance(choice, Choice)
    assert choice.options.model_dump()["p"] == 1.0
    draws = Draws(torch.arange(len(images)), seed=3, path="views")
    result: torch.Tensor = build_distortion(choice)(images, draws)
    return result
