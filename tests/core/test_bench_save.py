"""What `dira bench save` times are saves and loads of one and the same state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kit import SMALL, kit
from torch import Tensor
from typer.testing import CliRunner

from dira_core import cli
from dira_core.bench.save import Saves
from dira_core.build import build_source, build_trio
from dira_core.checkpoint import Checkpoints
from dira_core.errors import RunFolderError
from dira_core.game import Game
from dira_core.recipe import Recipe

ARMS = {
    "hold",
    "step while saving",
    "step",
    "until on disk",
    "save in the step",
    "torch.save",
    "load",
    "load, verified",
    "torch.load",
}


@pytest.fixture(scope="module", autouse=True)
def _kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with kit(tmp_path_factory.mktemp("kit")):
        yield


def same(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    return a.keys() == b.keys() and all(
        a[stem].keys() == b[stem].keys()
        and all(torch.equal(a[stem][name], b[stem][name]) for name in a[stem])
        for stem in a
    )


def test_every_arm_saves_or_loads_the_state_of_the_trainer(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "data": "small-set",
            "backbone": "small-net",
            "discriminator": {"name": "simsiam", "dim": 16, "hidden": 8},
            "views": {"size": 16},
            "train": {"batch_size": 8, "precision": "fp32"},
        }
    )
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    crops = game.first_crops()
    game.trainer.train_step([crops])
    saves = Saves(game.trainer, crops, tmp_path)
    checkpoints, found = Checkpoints(tmp_path / "dira", 2), []
    for name, arm in saves.arms().items():
        arm()
        if name in ("the rest", "until on disk", "save in the step"):
            found.append(checkpoints.load(saves.newest()))
    tensors, state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert len(tensors["optimizer"]) > 0
    assert not same(found[0][0], tensors)  # saved before the steps that are timed
    assert found[0][1] == state
    for other, _ in found[1:]:
        assert same(other, tensors)


@pytest.mark.slow
def test_the_command_measures_every_arm_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def ask(*flags: str) -> str:
        arguments = ["bench", "save", *SMALL, "--rounds", "1", "--out", str(tmp_path), *flags]
        result = CliRunner().invoke(cli.command_line(), arguments)
        assert result.exit_code == 0, result.output
        assert list(tmp_path.iterdir()) == []
        return result.stdout

    found = json.loads(ask("--json"))
    assert found["ms"].keys() == ARMS
    assert all(0 < ms["min"] <= ms["median"] <= ms["max"] for ms in found["ms"].values())
    assert found["tensors"] > 20
    assert found["torch.save / hold"] > 0
    said = ask()
    assert all(arm in said for arm in ARMS)


def test_a_place_that_is_no_folder_is_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.command_line(), ["bench", "save", *SMALL, "--out", str(tmp_path / "none")]
    )
    assert isinstance(result.exception, RunFolderError)
