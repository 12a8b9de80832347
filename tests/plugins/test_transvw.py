"""TransVW's classifier against its formula and sizes, and the presets against the facts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods import Flat, build, seen, told_apart
from torch import nn

import dira_transvw
from dira_core import Encodings, RecipeError, gather, resolve
from dira_core.recipe import Recipe
from dira_core.testing import TinyBackbone
from dira_distortions.blocks import by_axis

PRESETS = {preset.name: preset.recipe for preset in dira_transvw.dira_presets()}
CUBE = (32, 64, 64)


def labelled(n: int = 6, classes: int = 5) -> Any:
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    batch = seen(images)
    return type(batch)(batch.views, batch.index, torch.arange(n) % classes)


@pytest.mark.parametrize("head", ["pytorch", "keras"])
def test_the_loss_is_the_cross_entropy_of_the_logits(head: str) -> None:
    backbone, module = build("transvw", Flat(), classes=5, head=head, hidden=7)
    module.eval()
    batch = labelled()
    objective = module(Encodings(backbone, batch))
    scores = module.scores(backbone(batch.views[0].image)[-1])
    loss, accuracy = told_apart(scores, batch.label)
    torch.testing.assert_close(objective.loss, loss)
    assert objective.metrics["accuracy"].item() == pytest.approx(accuracy)
    assert scores.shape == (6, 5)


def test_the_heads_have_the_published_sizes() -> None:
    class Deep(Flat):
        channels, dims = (512,), 3

    with torch.device("meta"):
        _, pytorch = build("transvw", Deep(), classes=44)
        _, keras = build("transvw", Deep(), classes=44, head="keras")
    assert sum(p.numel() for p in pytorch.parameters()) == pytest.approx(14.2e6, rel=0.01)
    linear = [m for m in keras.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(512, 1024), (1024, 44)]
    (conv,) = [m for m in keras.modules() if isinstance(m, nn.Conv3d)]
    assert (conv.in_channels, conv.out_channels, conv.kernel_size) == (512, 512, (3, 3, 3))


def test_sure_scores_give_a_finite_loss() -> None:
    backbone, module = build("transvw", TinyBackbone(), classes=5, hidden=4)
    with torch.no_grad():
        module.head[-1].bias.copy_(torch.tensor([1e4, 0, 0, 0, 0]))
    assert module(Encodings(backbone, labelled())).loss.isfinite()


def test_it_needs_words_and_enough_classes_and_says_the_way_out() -> None:
    backbone, module = build("transvw", TinyBackbone(), classes=4, hidden=4)
    with pytest.raises(RecipeError, match="got number 4, set discriminator.classes"):
        module(Encodings(backbone, labelled()))
    with pytest.raises(RecipeError, match="dira words discover"):
        module(Encodings(backbone, seen(torch.rand(2, 1, 8, 8))))


def recipe(preset: str, *assignments: str) -> Recipe:
    return resolve(gather(preset=preset, data="phantom3d", assignments=assignments)).recipe


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_a_whole_recipe_but_for_the_data(name: str) -> None:
    got = recipe(name)
    assert got.backbone.name == "unet3d"
    assert got.views.size == CUBE
    assert got.views.scale == (1, 1)
    assert (got.discriminator is None) == (name == "genesis/unet3d")


def test_the_weights_rates_and_sizes_are_those_of_text_and_codes() -> None:
    paper, released, steps = map(recipe, ("paper/transvw", "released/transvw", "stepwise/transvw"))
    assert paper.weights.model_dump(exclude={"ramps"}) == {"dis": 1, "res": 100, "adv": 1}
    for player in (paper.optimizer, paper.critic_optimizer):
        assert (player.name, player.lr, player.lr_batch) == ("adam", 1e-3, None)
    assert (paper.train.batch_size, paper.train.epochs) == (8, 200)
    assert released.weights.dis / released.weights.res == 0.01
    assert released.adversary is None
    assert (released.optimizer.schedule, released.optimizer.half_life) == ("halving", 40)
    assert [stage.name for stage in steps.stages] == ["di", "dir", "dira"]
    assert steps.adversary is not None
    assert steps.adversary.options.model_dump()["penalty"] == 100
    assert steps.adversary.options.model_dump()["conditional"]


@pytest.mark.parametrize(
    ("name", "windows", "inside", "kept"),
    [
        ("released/transvw", 5, None, ((14, 28, 28), (19, 37, 37))),
        ("paper/transvw", 5, ((10, 10, 10), (20, 20, 20)), ((12, 44, 44), (22, 54, 54))),
        ("stepwise/transvw", 100, ((10, 10, 10), (20, 20, 20)), ((12, 44, 44), (22, 54, 54))),
    ],
)
def test_what_is_undone_has_the_published_voxels(
    name: str, windows: int, inside: Any, kept: Any
) -> None:
    first, then = PRESETS[name]["views"]["distort"]
    assert first == {"name": "elastic"}
    bezier, shuffle, inpaint, outpaint = then["of"]
    assert then["weights"] == [0.25] * 4
    assert (bezier["inverted"], shuffle["windows"]) == (0.5, windows)
    assert by_axis(outpaint["sides"], CUBE) == [*map(list, kept)]
    if inside is None:
        assert [[n // by for n in CUBE] for by in inpaint["side"]] == [[5, 10, 10], [10, 21, 21]]
    else:
        assert by_axis(inpaint["sides"], CUBE) == [*map(list, inside)]
        assert inpaint["fill"] == outpaint["fill"] == "constant"


def test_semantic_genesis_tells_words_and_undoes_what_models_genesis_does() -> None:
    got = recipe("genesis/semantic")
    (one_of,) = got.views.distort
    assert [operation["name"] for operation in one_of.options.model_dump()["of"]] == [
        "bezier",
        "pixel-shuffle",
        "noise-inpaint",
        "noise-outpaint",
    ]
    assert got.discriminator is not None
    assert got.discriminator.name == "transvw"
    assert got.discriminator.options.model_dump()["classes"] == 44
    assert got.restorer is not None
    assert got.adversary is None
