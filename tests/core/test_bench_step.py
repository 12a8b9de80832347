"""The comparison of `dira bench step` is fair: both sides compute the same weights."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import SMALL, kit
from torch import Tensor
from typer.testing import CliRunner

from dira_core import cli
from dira_core.bench.bare import BareLoop
from dira_core.bench.null import null_step
from dira_core.bench.step import prepared, step
from dira_core.bench.whole import WholeRun
from dira_core.build import build_source, build_trio
from dira_core.errors import RecipeError
from dira_core.game import Game
from dira_core.recipe import Recipe
from dira_core.trainer import seed_step
from dira_core.trio import Trio


@pytest.fixture(scope="module", autouse=True)
def _kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with kit(tmp_path_factory.mktemp("kit")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        yield


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "data": "small-set",
        "backbone": "small-net",
        "discriminator": {"name": "simsiam", "dim": 16, "hidden": 8},
        "restorer": {"name": "unet", "widths": [8, 8, 8]},
        "adversary": {"name": "patchgan", "widths": [4, 8, 8, 8]},
        "views": {"size": 16, "distort": ["inner-cutout"]},
        "train": {"batch_size": 8, "precision": "fp32"},
        "optimizer": {"lr": 0.5, "momentum": 0.9},
        "critic_optimizer": {"lr": 0.5},
        "weights": {"adv": 2.0},  # large, so that a wrong gradient shows
    }
    return Recipe.model_validate(values | changes)


def weights(trio: Trio) -> dict[str, Tensor]:
    roles = {name: role for name, role in vars(trio).items() if role is not None}
    return {
        f"{n}.{k}": v.clone() for n, role in roles.items() for k, v in role.state_dict().items()
    }


def after_one_step_each(chosen: Recipe, *, plain: bool) -> list[dict[str, Tensor]]:
    """Return the weights before, after dira's step and after the bare loop's, on one batch."""
    game = Game(build_trio(chosen), build_source(chosen), chosen)
    before = weights(game.trio)
    crops = next(game.loader.batches(0, 0, 0))
    batch = game.views(crops, 0, 0)
    other = prepared(chosen, len(game.source))
    seed_step(chosen.seed, 0, torch.device("cpu"))  # a gradient penalty draws numbers
    BareLoop(other, batch, chosen, game.precision, game.trainer.progress, plain=plain).step()
    game.trainer.train_step([crops])
    return [before, weights(game.trio), weights(other)]


MIXES: list[dict[str, Any]] = [
    {},
    {"adversary": "none"},
    {"discriminator": "none"},
    {"restorer": "none", "adversary": "none"},
    {"discriminator": {"name": "mocov2", "dim": 16}},
    {"train": {"batch_size": 8, "precision": "fp32", "channels_last": False}},
]


PENALISED = {"adversary": {"name": "unet-critic", "width": 2, "conditional": True}}
"""Its gradients of gradients jump where rounding turns a rectifier: only in the same layout."""


@pytest.mark.parametrize(
    ("changes", "plain"), [*itertools.product(MIXES, [False, True]), (PENALISED, False)]
)
def test_dira_and_the_hand_written_loops_end_a_step_with_the_same_weights(
    changes: dict[str, Any], plain: bool
) -> None:
    before, dira, bare = after_one_step_each(recipe(**changes), plain=plain)
    assert dira.keys() == bare.keys()
    assert sum(not torch.equal(before[key], dira[key]) for key in dira) > len(dira) / 2
    near = 1e-5 if plain else 1e-6  # another memory layout adds in another order
    for key, value in dira.items():
        torch.testing.assert_close(value, bare[key], rtol=near, atol=near, msg=key)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"batch_size": 4, "accumulate": 2}}, "steps of one batch"),
        ({"discriminator": "deepcluster"}, "starts no epoch, as 'deepcluster'"),
        ({"views": {"size": 16, "discriminator_sees": "clean"}}, "encodes each view once"),
        ({"restorer": {"name": "unet", "n_restored": 2}}, "restores the first one"),
    ],
)
def test_what_the_hand_written_loops_do_not_do_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        step(recipe(**changes), rounds=1)


@pytest.mark.slow
def test_data_workers_end_with_what_they_are_for(tmp_path: Path) -> None:
    others = set(multiprocessing.active_children())
    chosen = recipe(loader={"workers": 1})
    game = Game(build_trio(chosen), build_source(chosen), chosen)
    game.first_crops()
    with WholeRun(chosen, tmp_path) as whole:
        whole.step()
        kept = set(multiprocessing.active_children()) - others
        assert kept
    for process in kept:
        process.join(5)
        assert not process.is_alive()


@pytest.mark.slow
def test_the_command_measures_every_arm_and_prints_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*flags: str) -> str:
        result = CliRunner().invoke(
            cli.command_line(), ["bench", "step", *SMALL, "--rounds", "1", *flags]
        )
        assert result.exit_code == 0, result.output
        return result.stdout

    found = json.loads(ask("--json"))
    peaks = {"dira step", "dira step, recompute", "bare loop"}
    assert found["ms"].keys() == peaks | {"plain fp32 step", "dira run", "views"}
    assert found["MiB"].keys() == peaks
    assert all(ms > 0 for ms in found["ms"].values())
    assert found["precision"] == "fp32"
    assert found["null step us"] > 0
    monkeypatch.setattr("dira_core.bench.step.step", lambda recipe, rounds: found)
    assert "bare loop / dira step" in ask()


def test_a_step_that_computes_nothing_is_timed_over_a_whole_run() -> None:
    assert null_step() > 0
