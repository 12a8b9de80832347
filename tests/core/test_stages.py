"""Stages of a run, weights that grow, and the modes di, dir and dira."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from crew import ended
from parts import forked
from safetensors.torch import load_file

from dira_core import gather, resolve
from dira_core.api import run
from dira_core.checkpoint import Checkpoints
from dira_core.errors import RecipeError
from dira_core.layering import Layer, file_layer
from dira_core.recipe import Recipe, to_toml
from dira_core.settings import Weights
from dira_core.watching import Silent

SMALL: dict[str, Any] = {
    "data": {"name": "phantom", "n": 12},
    "backbone": "resnet18",
    "discriminator": {"name": "simsiam", "dim": 8, "hidden": 4},
    "restorer": {"name": "unet", "widths": [8, 8, 8, 8, 8]},
    "adversary": {"name": "patchgan", "widths": [4, 4, 4, 4]},
    "views": {"size": 32, "distort": ["inner-cutout"]},
    "train": {"epochs": 1, "batch_size": 4, "precision": "fp32"},
    "log": {"every": 1, "probe": False},
    "stages": [
        {"name": "di", "changes": {"restorer": "none", "adversary": "none"}},
        {"name": "dir", "changes": {"adversary": "none"}},
        {"name": "dira", "changes": {"train": {"batch_size": 2}, "optimizer": {"lr": 0.01}}},
    ],
}


def recipe_of(**changes: Any) -> Recipe:
    return resolve([Layer("test", SMALL | changes)]).recipe


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds of the model, but for counts that nothing depends on."""
    tensors = load_file(checkpoint / "model.safetensors")
    return {key: v for key, v in tensors.items() if not key.endswith("num_batches_tracked")}


def first(folder: Path) -> dict[str, torch.Tensor]:
    return weights(folder / "checkpoints/step-00000000")


def last(folder: Path) -> dict[str, torch.Tensor]:
    newest = Checkpoints(folder / "checkpoints", 2).latest()
    assert newest is not None
    return weights(newest)


def test_a_stage_is_the_recipe_with_its_changes_and_without_stages() -> None:
    recipe = recipe_of()
    first, third = recipe.at_stage(0), recipe.at_stage(2)
    assert first.restorer is None
    assert first.adversary is None
    assert third.train.batch_size == 2
    assert third.restorer == recipe.restorer
    assert first.stages == third.stages == []


def test_the_written_recipe_keeps_its_stages(tmp_path: Path) -> None:
    recipe = recipe_of()
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    assert resolve(gather(preset="none", recipe=tmp_path / "recipe.toml")).recipe == recipe


@pytest.mark.slow
def test_every_stage_starts_from_the_weights_of_the_one_before(tmp_path: Path) -> None:
    result = run(recipe_of(train={"epochs": 1, "batch_size": 4, "precision": "fp32"}), tmp_path)
    assert result.status == "done"
    stages = [tmp_path / "stages" / name for name in ("di", "dir", "dira")]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 3 + 3 + 6
    assert summary["before"] == json.loads((stages[0] / "summary.json").read_text())["before"]
    for before, after in itertools.pairwise(stages):
        ended = last(before)
        started = first(after)
        shared = [key for key in ended if key in started]
        assert {key.split(".")[1] for key in shared} >= {"backbone", "discriminator"}
        assert all(torch.equal(ended[key], started[key]) for key in shared)
    exported = (tmp_path / "weights/backbone.safetensors").read_bytes()
    assert exported == (stages[2] / "weights/backbone.safetensors").read_bytes()


@pytest.mark.slow
def test_a_role_that_is_not_inherited_starts_anew(tmp_path: Path) -> None:
    stages = [{"name": "a"}, {"name": "b", "inherit": ["adversary"]}]
    run(recipe_of(stages=stages), tmp_path)
    began, ended = first(tmp_path / "stages/a"), last(tmp_path / "stages/a")
    for key, value in first(tmp_path / "stages/b").items():
        expected = began if key.startswith("model.discriminator") else ended
        assert torch.equal(value, expected[key]), key


@pytest.mark.slow
def test_a_teacher_made_in_a_later_stage_copies_the_backbone_handed_down(tmp_path: Path) -> None:
    restorer = {"name": "a", "changes": {"discriminator": "none", "adversary": "none"}}
    byol = {"name": "byol", "dim": 8, "hidden": 8}
    run(recipe_of(discriminator=byol, stages=[restorer, {"name": "b"}]), tmp_path)
    started, ended = first(tmp_path / "stages/b"), last(tmp_path / "stages/a")
    for key, value in ended.items():
        if key.startswith("model.backbone."):
            copied = key.replace("model.backbone", "model.discriminator.teacher.copies.0")
            assert torch.equal(started[key], value)
            assert torch.equal(started[copied], value), key


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_killed_in_its_second_stage_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    run(recipe_of(), tmp_path / "whole")

    def killed() -> None:
        class Deadly:
            def stepped(self, *_: object) -> None:
                if (tmp_path / "killed/stages/dir").exists():
                    os.kill(os.getpid(), 9)

            def said(self, message: str) -> None:
                pass

        run(recipe_of(), tmp_path / "killed", display=Deadly())

    assert os.waitpid(forked(killed), 0)[1] == 9
    assert not (tmp_path / "killed/weights").exists()
    run(recipe_of(), tmp_path / "killed", resume=True)
    names = ["weights/backbone.safetensors", "weights/restorer.safetensors", "images/restored.png"]
    names += [f"stages/{stage}/metrics.jsonl" for stage in ("di", "dir", "dira")]
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert run(recipe_of(), tmp_path / "killed", resume=True).status == "done"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_stages_keep_their_global_batches_on_any_number_of_processes(
    tmp_path: Path, processes: int
) -> None:
    meant = {"epochs": 1, "batch_size": 4, "precision": "fp32", "processes": 2}
    halved = {"name": "b", "changes": {"train": {"batch_size": 2}}}
    recipe = recipe_of(train=meant, stages=[{"name": "a"}, halved])
    left = ended(tmp_path / "crew", lambda rank: run(recipe, tmp_path / "run"), processes)
    assert [each.code for each in left] == [0] * processes, left
    steps = {
        name: json.loads((tmp_path / f"run/stages/{name}/summary.json").read_text())["steps"]
        for name in ("a", "b")
    }
    assert steps == {"a": 12 // 8, "b": 12 // 4}
    stored = resolve([file_layer(tmp_path / "run/recipe.toml")]).recipe
    assert (stored.train, stored.stages) == (recipe.train, recipe.stages)


@pytest.mark.slow
def test_a_signal_between_two_stages_is_heard(tmp_path: Path) -> None:
    class Hasty(Silent):
        def said(self, message: str) -> None:
            if message == "stage 2 of 3: dir":
                os.kill(os.getpid(), signal.SIGTERM)

    assert run(recipe_of(), tmp_path, display=Hasty()).status == "preempted"
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("preempted", "in stage dir")
    assert run(recipe_of(), tmp_path, resume=True).status == "done"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"name": "a"}, {"name": "a"}], "two stages have one name"),
        ([{"name": "a", "changes": {"seed": 3}}], "seed is the same in all stages"),
        ([{"name": "a", "changes": {"train": {"epoch": 3}}}], "did you mean 'epochs'"),
        ([{"name": "a", "changes": {"discriminator": "none", "restorer": "none"}}], "nothing to"),
        ([{"name": "a b"}], "stages.0.name"),
        ([{"name": "a", "inherit": ["teacher"]}], "stages.0.inherit"),
    ],
)
def test_stages_that_cannot_be_run_are_refused_at_once(stages: Any, said: str) -> None:
    with pytest.raises(RecipeError, match="stages") as found:
        recipe_of(stages=stages)
    assert said in str(found.value)


def test_a_flag_that_a_stage_would_overrule_is_refused_with_the_way_out() -> None:
    flag = Layer.at("--batch-size", ("train", "batch_size"), 8)
    with pytest.raises(RecipeError, match=r"--set stages\.2\.changes\.train\.batch_size="):
        resolve([Layer("test", SMALL), flag])
    own = Layer.at("--set stages", ("stages", "2", "changes", "train", "batch_size"), 1)
    both = resolve([Layer("test", SMALL), flag, own]).recipe
    assert [both.at_stage(n).train.batch_size for n in range(3)] == [8, 8, 1]


def test_weights_grow_in_a_line_between_two_epochs() -> None:
    weights = Weights(dis=1.0, res=10.0, adv=0.5, ramps={"adv": (1.0, 3.0), "res": (2.0, 2.0)})
    assert [weights.at(epoch)["adv"] for epoch in (0, 1, 1.5, 2, 3, 9)] == [
        0,
        0,
        0.125,
        0.25,
        0.5,
        0.5,
    ]
    assert [weights.at(epoch)["res"] for epoch in (1.9, 2.0)] == [0, 10]
    assert [weights.at(epoch)["dis"] for epoch in (0, 9)] == [1, 1]


def test_a_ramp_that_ends_before_it_starts_is_refused() -> None:
    ramp = Layer.at("--set ramp", ("weights", "ramps", "adv"), [2.0, 1.0])
    with pytest.raises(RecipeError, match=r"weights\.ramps\.adv.*the earlier epoch must be first"):
        resolve([Layer("test", SMALL), ramp])


@pytest.mark.parametrize(
    ("mode", "roles"), [("di", (False, False)), ("dir", (True, False)), ("dira", (True, True))]
)
@pytest.mark.parametrize("distorted", [False, True])
def test_a_mode_leaves_roles_out_and_the_views_as_they_are(
    mode: str, roles: tuple[bool, bool], distorted: bool
) -> None:
    off = [] if distorted else [Layer.at("--no-distort", ("views", "distort"), [])]
    off.append(Layer.at("--res", ("restorer",), "unet"))  # the whole trio named, a part left out
    found = resolve(gather(off, preset="fixed", data="phantom", mode=mode)).recipe
    assert (found.restorer is not None, found.adversary is not None) == roles
    assert bool(found.views.distort) == distorted
    whole = resolve(gather(off, preset="fixed", data="phantom")).recipe
    assert found.views == whole.views
