"""`dira run` from first line to last: folders, resuming, rehearsing, mistakes, exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kit import SMALL, Dira, kit
from parts import outcome

import dira_core
from dira_core.api import run
from dira_core.cli.run import of_job, resumed
from dira_core.errors import RecipeError
from dira_core.game import shared_out
from dira_core.layering import Layer, gather
from dira_core.lines import read_lines
from dira_core.plugins import installed
from dira_core.recipe import Recipe, to_toml
from dira_core.resolving import resolve
from dira_core.settings import Train


@pytest.fixture(scope="module", autouse=True)
def _kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with kit(tmp_path_factory.mktemp("kit")):
        yield


def preempted_at(step: int, dira: Dira, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KIT_STOP_AT", str(step))
    code, _, err = dira("run", *SMALL, "--name", f"stopped-{step}")
    monkeypatch.delenv("KIT_STOP_AT")
    folder = Path(f"runs/stopped-{step}")
    assert code == 75, err
    assert f"dira run --resume {folder}" in err
    return folder


def test_a_run_ends_with_what_was_learned_in_a_folder_named_after_its_parts(dira: Dira) -> None:
    code, out, err = dira("run", *SMALL)
    assert code == 0, err
    folder = Path("runs/simsiam-unet-patchgan-small-net-small-set")
    assert json.loads((folder / "status.json").read_text())["status"] == "done"
    for line in ("restoration error", "embedding std", "effective rank", "8 steps", "weights"):
        assert line in out
    assert str(folder / "weights/backbone.safetensors") in out
    found = dira_core.load(folder)
    assert found.restorer is not None
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['after']['restoration/error']:.5f}" in out


def test_the_next_run_gets_a_folder_of_its_own_and_a_name_may_be_given(dira: Dira) -> None:
    for name in ("mine", "mine", "a b/c"):
        assert dira("run", *SMALL, "--epochs", "1", "--out", "here", "--name", name)[0] == 0
    assert sorted(p.name for p in Path("here").iterdir()) == ["a-b-c", "mine", "mine-2"]


def test_without_a_terminal_progress_is_plain_lines(dira: Dira) -> None:
    _, _, err = dira("run", *SMALL)
    lines = err.splitlines()
    assert lines[0].startswith("simsiam-unet-patchgan-small-net-small-set in runs/")
    assert "epoch 2/2  step 8/8" in lines[-1]
    assert "res 0." in lines[-1]
    assert "\x1b" not in err


def test_the_first_lines_say_how_the_run_computes(dira: Dira) -> None:
    _, _, err = dira("run", *SMALL, "--precision", "auto")
    said = "fp32 (auto), channels last, on cpu, one process of 1 thread"  # 16 px are few for bf16
    assert err.splitlines()[1] == said


@pytest.mark.parametrize(("flag", "value"), [("--batch-size", "99"), ("--init", "nowhere")])
def test_a_run_that_nothing_came_of_leaves_its_name_free(dira: Dira, flag: str, value: str) -> None:
    assert dira("run", *SMALL, "--name", "mine", flag, value)[0] in (2, 3, 6)
    assert not Path("runs/mine").exists()
    assert dira("run", *SMALL, "--name", "mine")[0] == 0
    assert Path("runs/mine/summary.json").is_file()


def test_one_step_has_no_speed_and_several_do(dira: Dira) -> None:
    assert " images/s" in dira("run", *SMALL, "--name", "several")[1]
    out = dira("run", *SMALL, "--epochs", "1", "--batch-size", "16", "--name", "one")[1]
    assert "1 steps, too few in one go for a speed" in out
    assert "images_per_s" not in json.loads(Path("runs/one/summary.json").read_text())


def test_a_profile_shows_some_steps_and_changes_no_bit(dira: Dira) -> None:
    assert dira("run", *SMALL, "--name", "plain")[0] == 0
    code, _, err = dira("run", *SMALL, "--name", "run", "--profile", "--set", "log.profile=2")
    assert code == 0, err
    folder = Path("runs/run/profile")
    assert f"profile of 2 steps: {folder}/rank-0.json" in err
    events = json.loads((folder / "rank-0.json").read_text())["traceEvents"]
    calls = [event["name"] for event in events if event.get("ph") == "X"]
    assert [calls.count(f"Optimizer.step#{rule}.step") for rule in ("SGD", "Adam")] == [2, 2]
    table = (folder / "rank-0.txt").read_text()
    assert "aten::" in table
    assert len([line for line in table.splitlines() if "%" in line]) <= 21
    assert outcome(Path("runs/run")) == outcome(Path("runs/plain"))


def test_a_recipe_with_all_its_values_can_be_profiled(dira: Dira) -> None:
    assert dira("run", *SMALL, "--name", "a")[0] == 0
    code, _, err = dira("run", "--recipe", "runs/a/recipe.toml", "--name", "b", "--profile")
    assert code == 0
    assert "profile" in err


def test_a_run_too_short_to_be_profiled_says_so(dira: Dira) -> None:
    _, _, err = dira("run", *SMALL, "--epochs", "1", "--batch-size", "8", "--profile")
    assert "nothing is profiled" in err


def test_the_recipe_in_a_run_folder_repeats_the_run(dira: Dira) -> None:
    assert dira("run", *SMALL, "--name", "first")[0] == 0
    code, _, err = dira("run", "--recipe", "runs/first/recipe.toml", "--name", "again")
    assert code == 0, err
    assert outcome(Path("runs/first")) == outcome(Path("runs/again"))


@pytest.mark.slow
def test_a_run_stopped_at_any_step_and_resumed_ends_with_the_same_bits(
    dira: Dira, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dira("run", *SMALL, "--name", "whole")[0] == 0
    whole = outcome(Path("runs/whole"))
    for step in range(1, 9):
        folder = preempted_at(step, dira, monkeypatch)
        assert json.loads((folder / "status.json").read_text())["status"] == "preempted"
        code, out, err = dira("run", "--resume", str(folder))
        assert code == 0, err
        assert "8 steps" in out
        assert f"step {step} of 8" in err
        assert outcome(folder) == whole, f"stopped at step {step}"


def test_a_run_that_failed_before_its_first_step_is_resumed_from_step_0(
    dira: Dira, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIT_FAIL_AT", "start")
    code, _, err = dira("run", *SMALL, "--name", "run")
    assert (code, err.splitlines()[-1][:40]) == (4, "error: 'kit' raised in dira_run_started ")
    monkeypatch.delenv("KIT_FAIL_AT")
    code, _, err = dira("run", "--resume", "runs/run")
    assert code == 0
    assert "resumed from step-00000000" in err
    assert dira("run", *SMALL, "--name", "whole")[0] == 0
    assert outcome(Path("runs/run")) == outcome(Path("runs/whole"))


def test_networks_of_a_run_in_a_format_that_this_machine_lacks_are_read_all_the_same(
    dira: Dira,
) -> None:
    assert dira("run", *SMALL, "--name", "run")[0] == 0
    place = Path("runs/run/recipe.toml")
    place.write_text(place.read_text().replace('precision = "fp32"', 'precision = "bf16"'))
    _, trio = dira_core.load_run(place.parent)
    there = dira_core.load(place.parent).backbone.state_dict()
    torch.testing.assert_close(trio.backbone.state_dict(), there)


def test_resuming_a_finished_run_changes_nothing_and_is_no_error(dira: Dira) -> None:
    first = dira("run", *SMALL, "--name", "run")[1]
    before = {p: p.read_bytes() for p in Path("runs/run").rglob("*") if p.is_file()}
    code, out, err = dira("run", "--resume", "runs/run")
    assert (code, out) == (0, first)
    assert "done already" in err
    assert before == {p: p.read_bytes() for p in Path("runs/run").rglob("*") if p.is_file()}


def test_a_finished_run_whose_summary_is_damaged_says_how_to_write_it_anew(dira: Dira) -> None:
    dira("run", *SMALL, "--name", "run")
    path = Path("runs/run/summary.json")
    before = json.loads(path.read_text())
    for damage in ("", "[]", None):
        path.unlink() if damage is None else path.write_text(damage)
        code, _, err = dira("run", "--resume", "runs/run")
        assert code == 2
        said = f"error: {path} is missing or damaged: remove status.json beside it and resume"
        assert said in err
    Path("runs/run/status.json").unlink()
    assert dira("run", "--resume", "runs/run")[0] == 0
    again = json.loads(path.read_text())
    assert {key: again[key] for key in ("steps", "before")} == {
        key: before[key] for key in ("steps", "before")
    }


def test_a_resumed_run_may_change_what_decides_nothing_about_weights(
    dira: Dira, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = preempted_at(2, dira, monkeypatch)
    changes = ["--set", "log.every=2", "--set", "checkpoint.every_steps=5"]
    assert dira("run", "--resume", str(folder), *changes)[0] == 0
    steps = [line["step"] for line in read_lines(folder / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]  # health looks at 3, 5 and 7
    assert (folder / "checkpoints/step-00000005").exists()
    kept = resumed(folder, [])  # what is resumed or verified next goes on with the same
    assert (kept.log.every, kept.checkpoint.every_steps) == (2, 5)


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (["--lr", "0.5"], "optimizer.lr"),
        (["--set", "views.scale=[0.1, 1]", "--seed", "3"], "seed, views.scale"),
        (["--adv", "none"], "adversary"),
        (["--epochs", "9", "--set", "log.every=3"], "train.epochs"),
        (["--data", "phantom"], "data.n, data.name, data.path, data.size"),
    ],
)
def test_a_resumed_run_refuses_other_changes_by_name(
    dira: Dira, monkeypatch: pytest.MonkeyPatch, change: list[str], keys: str
) -> None:
    folder = preempted_at(2, dira, monkeypatch)
    code, _, err = dira("run", "--resume", str(folder), *change)
    assert code == 2
    assert err == (
        f"error: --resume continues the same run, {keys} cannot change: start a new one with "
        f"--recipe {folder}/recipe.toml and your changes\n"
    )


REFUSED = {
    "seed": 3,
    "init": "imagenet",
    "data.n": 99,
    "backbone.name": "resnet18",
    "discriminator.dim": 8,
    "restorer.widths": [4, 4, 4],
    "adversary.widths": [4, 4, 4, 4],
    "views.size": 32,
    "weights.res": 1.0,
    "optimizer.lr": 0.5,
    "critic_optimizer.lr": 0.5,
    "stages": [{"name": "a"}],
    "train.epochs": 9,
    "train.batch_size": 2,
    "train.accumulate": 2,
    "train.precision": "auto",
    "train.channels_last": False,
    "train.device": "cuda",
    "train.processes": 2,
    "train.sync_norm": True,
    "train.deterministic": False,
}
"""What a resumed run must not change: another value of every key, or of one key of a table."""

ALLOWED = {
    "train.strategy": "fsdp",
    "train.recompute": True,
    "train.compile": True,
    "train.timeout_s": 5.0,
    "loader.workers": 3,
    "log.every": 7,
    "checkpoint.every_steps": 99,
    "health.policy": "stop",
}
"""What it may change."""


def changed(key: str, value: object) -> Layer:
    """Return a layer with one key."""
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return Layer(key, value)


def test_every_key_may_or_may_not_be_changed_by_a_resume(tmp_path: Path) -> None:
    tables = [key for key in Recipe.model_fields if key != "train"]
    listed = {k if k.startswith("train.") else k.partition(".")[0] for k in REFUSED | ALLOWED}
    assert listed == {*tables, *(f"train.{key}" for key in Train.model_fields)}
    values = {
        **{"data": "small-set", "backbone": "small-net", "views": {"size": 16}},
        **{"discriminator": "simsiam", "restorer": "unet", "adversary": "patchgan"},
        "train": {"precision": "fp32"},
    }
    (tmp_path / "recipe.toml").write_text(to_toml(resolve([Layer("first", values)]).recipe))
    for key, value in ALLOWED.items():
        found = resumed(tmp_path, [changed(key, value)]).model_dump()
        for part in key.split("."):
            found = found[part]
        assert found == value
    for key, value in REFUSED.items():
        with pytest.raises(RecipeError, match=f"same run, .*{key}.* cannot change"):
            resumed(tmp_path, [changed(key, value)])


def test_python_continues_a_run_with_its_own_recipe_alone(
    dira: Dira, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = preempted_at(2, dira, monkeypatch)
    other = resumed(folder, []).model_copy(update={"seed": 7})
    with pytest.raises(RecipeError, match="the run in .* has another recipe, seed cannot change"):
        run(other, folder, resume=True)
    looser = resumed(folder, [changed("loader.cache_mb", 1)])
    assert run(looser, folder, resume=True).status == "done"


@pytest.mark.parametrize("stopped", [False, True])
def test_a_job_goes_on_with_its_own_run_and_takes_no_other_one_for_it(
    dira: Dira, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "4711")
    asked = ["run", *SMALL, "--lr", "0.1"]
    if stopped:
        monkeypatch.setenv("KIT_STOP_AT", "2")
    assert dira(*asked, "--name", "a")[0] == (75 if stopped else 0)
    monkeypatch.delenv("KIT_STOP_AT", raising=False)
    other = {
        "data.n, optimizer.lr": ["run", *SMALL, "--lr", "0.5", "--set", "data.n=40"],
        "optimizer.lr": ["run", *SMALL],  # what is no longer asked for differs as well
    }
    for keys, command in other.items():
        code, _, err = dira(*command, "--name", "b")
        assert code == 2
        said = f"this job began runs/a and goes on with it, {keys} cannot change: start a new run"
        assert said in err
    assert dira(*asked, "--set", "loader.cache_mb=1")[0] == 0
    assert [path.name for path in Path("runs").iterdir()] == ["a"]


@pytest.mark.parametrize("before", [1, 4])
def test_the_command_of_a_job_asks_for_the_same_run_whatever_the_preset_and_the_processes(
    tmp_path: Path, before: int
) -> None:
    for preset in installed().names("preset"):
        asked = gather([], preset=preset, recipe=None, assignments=[], data="phantom3d", mode=None)
        recipe = resolve(asked).recipe
        batch = recipe.train.batch_size // before
        train = recipe.train.model_copy(update={"processes": before, "batch_size": batch})
        (tmp_path / "recipe.toml").write_text(to_toml(recipe.model_copy(update={"train": train})))
        asked.append(changed("train.batch_size", batch))
        assert shared_out(of_job(tmp_path, asked)).train.batch_size == batch * before


def test_resuming_what_is_no_run_says_so(dira: Dira) -> None:
    code, _, err = dira("run", "--resume", "nowhere")
    assert (code, err) == (2, "error: --resume nowhere: no run there, it has no recipe.toml\n")


def test_a_dry_run_shows_losses_time_memory_disk_and_views_and_trains_nothing(dira: Dira) -> None:
    code, out, err = dira("run", *SMALL, "--dry-run")
    assert code == 0, err
    for word in ("losses/dis", "losses/res", "losses/adv", "losses/critic", "time", "memory"):
        assert any(line.startswith(word) for line in out.splitlines())
    assert "for 8 steps" in out
    assert "16 images, 0 of 8 unreadable" in out
    [folder] = Path("runs").iterdir()
    assert folder.name.startswith("dry-")
    assert [p.name for p in folder.iterdir()] == ["views.png"]


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--disc", "simsam"], 2, "did you mean 'simsiam'"),
        (["--set", "train.epoch=3"], 2, "did you mean 'epochs'"),
        (["--set", "views.size"], 2, "key.key=value"),
        (["--precision", "fp8"], 2, "train.precision"),
        (["--res", "none"], 2, "choose a restorer"),
        (["--data", "missing/folder"], 2, "no such file or folder"),
        (["--set", "train.device=cuda"], 2, "torch sees no GPU"),
        (["--batch-size", "64"], 3, "the source has 16"),
        (["--res", "broken"], 4, "KeyError: 'half written'"),
        (["--data", "poisoned"], 5, "not finite at step"),
    ],
)
def test_a_mistake_is_one_plain_message_and_its_exit_code(
    dira: Dira, flags: list[str], code: int, said: str
) -> None:
    small = SMALL
    if "--res" in flags:  # its options are those of the other restorer
        small = [f.replace("restorer.widths=[8, 8, 8]", "seed=0") for f in SMALL]
    found, out, err = dira("run", *small, *flags)
    assert found == code, err
    assert out == ""
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert said in err
    assert "Traceback" not in err


def test_all_mistakes_come_in_one_message(dira: Dira) -> None:
    code, _, err = dira("run", *SMALL, "--precision", "fp8", "--set", "train.epoch=3")
    assert code == 2
    assert "train.precision" in err
    assert "train.epoch" in err
    assert not Path("runs").exists()


def test_a_folder_without_images_is_an_error_of_the_data(dira: Dira) -> None:
    Path("empty").mkdir()
    code, _, err = dira("run", *SMALL, "--data", "empty")
    assert code == 3
    assert "Traceback" not in err


def test_help_teaches_what_the_flags_and_exit_codes_mean(dira: Dira) -> None:
    code, out, _ = dira("run", "--help")
    assert code == 0
    for word in ("--disc", "--res", "--adv", "--resume", "--dry-run", "75", "Ctrl-C", "minute"):
        assert word in out


@pytest.mark.slow
def test_the_first_command_of_the_readme_works_on_built_in_images(dira: Dira) -> None:
    flags = ["--disc", "simsiam", "--res", "unet", "--adv", "patchgan", "--backbone", "resnet18"]
    small = ["--set", "data.n=64", "--size", "32", "--epochs", "1", "--batch-size", "16"]
    code, out, err = dira("run", *flags, *small, "--precision", "fp32")
    assert code == 0, err
    assert "kNN accuracy of frozen features" in out
    folder = Path("runs/simsiam-unet-patchgan-resnet18-phantom")
    assert (folder / "images/restored.png").exists()
    assert dira_core.load(folder).backbone.channels[-1] == 512
