"""A run from Python: what it leaves behind, and that it is repeatable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from parts import outcome, small_run, small_settings, small_trio

from dira_core.api import pretrain
from dira_core.errors import CheckpointError, DataError, DivergedError, RunFolderError
from dira_core.lines import read_lines
from dira_core.testing import TinySource
from dira_core.types import Image


def test_a_run_leaves_logs_checkpoints_weights_pictures_and_a_summary(tmp_path: Path) -> None:
    result = small_run(tmp_path / "run")
    assert result.status == "done"
    names = {
        p.relative_to(result.folder).as_posix() for p in result.folder.rglob("*") if p.is_file()
    }
    assert {
        "metrics.jsonl",
        "speed.jsonl",
        "environment.json",
        "recipe.toml",
        "summary.json",
        "images/restored.png",
        "weights/backbone.safetensors",
        "weights/restorer.safetensors",
        "checkpoints/step-00000018/MANIFEST.json",
    } <= names
    assert json.loads((result.folder / "status.json").read_text())["status"] == "done"
    assert json.loads((result.folder / "summary.json").read_text()) == result.summary
    lines = list(read_lines(result.folder / "metrics.jsonl"))
    assert [line["step"] for line in lines] == list(range(1, 19))
    assert {"losses/dis", "losses/res", "losses/adv", "losses/critic"} <= lines[0].keys()
    assert {"gradients/dis", "gradients/cos_dis_res", "embedding/std"} <= lines[0].keys()


def test_the_same_recipe_and_seed_give_the_same_bits(tmp_path: Path) -> None:
    small_run(tmp_path / "a")
    small_run(tmp_path / "b")
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


def test_workers_change_no_bit_of_a_run(tmp_path: Path) -> None:
    small_run(tmp_path / "a")
    small_run(tmp_path / "b", loader={"workers": 2})
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


def test_two_micro_batches_take_as_many_images_a_step_as_one_of_twice_the_size(
    tmp_path: Path,
) -> None:
    small_run(tmp_path / "run", train={"accumulate": 2, "batch_size": 4})
    lines = list(read_lines(tmp_path / "run/metrics.jsonl"))
    assert len(lines) == 3 * 24 // 8
    assert all(np.isfinite(line["losses/total"]) for line in lines)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_half_precision_ends_with_finite_float32_weights(
    tmp_path: Path, precision: str
) -> None:
    trio = small_trio()
    settings = small_settings(train={"precision": precision, "epochs": 1}, views={"size": 24})
    pretrain(trio, TinySource(24), settings, tmp_path / "run")
    for parameter in trio.backbone.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()


def test_gradients_are_clipped_to_the_given_norm(tmp_path: Path) -> None:
    trio, plain = small_trio(), small_trio()
    before = [p.detach().clone() for p in trio.backbone.parameters()]
    common = {"name": "sgd", "lr": 1.0, "lr_batch": None, "momentum": 0.0, "weight_decay": 0.0}
    one = {"epochs": 1, "batch_size": 24}
    clipped = small_settings(optimizer=common | {"clip": 1e-6}, train=one)
    pretrain(trio, TinySource(24), clipped, tmp_path / "a")
    pretrain(plain, TinySource(24), small_settings(optimizer=common, train=one), tmp_path / "b")

    def moved(module: torch.nn.Module) -> float:
        pairs = zip(module.parameters(), before, strict=True)
        return float(sum((p.detach() - b).square().sum() for p, b in pairs).sqrt())

    assert moved(trio.backbone) <= 1.01e-6
    assert moved(plain.backbone) > 1e-4


def test_finishing_a_finished_run_again_changes_nothing(tmp_path: Path) -> None:
    first = small_run(tmp_path / "run")
    before = outcome(tmp_path / "run")
    assert small_run(tmp_path / "run", resume=True).summary == first.summary
    assert outcome(tmp_path / "run") == before
    with pytest.raises(RunFolderError, match="finished run"):
        small_run(tmp_path / "run")


def test_resuming_with_other_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _stopped_after(tmp_path / "run", steps=5)
    with pytest.raises(CheckpointError, match="data changed"):
        pretrain(small_trio(), TinySource(28), small_settings(), tmp_path / "run", resume=True)


def test_resuming_with_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _stopped_after(tmp_path / "run", steps=5)
    other = small_trio()
    other.restorer = other.adversary = None
    with pytest.raises(CheckpointError, match="does not fit"):
        pretrain(other, TinySource(24), small_settings(), tmp_path / "run", resume=True)


class Interrupting:
    """A display that presses Ctrl-C twice."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def stepped(self, progress, metrics, speed) -> None:  # type: ignore[no-untyped-def]
        if progress.step == self.steps:
            raise KeyboardInterrupt

    def said(self, message: str) -> None:
        """Ignore it."""


def _stopped_after(folder: Path, steps: int) -> None:
    pretrain(small_trio(), TinySource(24), small_settings(), folder, display=Interrupting(steps))


def test_a_run_interrupted_at_any_step_and_resumed_equals_one_that_was_not(tmp_path: Path) -> None:
    small_run(tmp_path / "whole")
    for steps in range(1, 18):
        folder = tmp_path / f"stopped-{steps}"
        with pytest.raises(KeyboardInterrupt):
            _stopped_after(folder, steps)
        assert json.loads((folder / "status.json").read_text())["status"] == "failed"
        small_run(folder, resume=True)
        assert outcome(folder) == outcome(tmp_path / "whole"), f"stopped after step {steps}"


class Poisoned(TinySource):
    """Two images of it hold NaN, which no source should hand out."""

    def read(self, index: int) -> Image:
        image = super().read(index)
        if index in (3, 11):
            return Image(np.full(image.pixels.shape, np.nan, np.float32), (0.0, 1.0))
        return image


def test_a_loss_that_is_not_finite_stops_before_it_reaches_a_weight(tmp_path: Path) -> None:
    trio = small_trio()
    with pytest.raises(DivergedError, match="not finite at step"):
        pretrain(trio, Poisoned(24), small_settings(), tmp_path / "run")
    assert all(p.isfinite().all() for p in trio.backbone.parameters())
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "diverged"
    named = next((tmp_path / "run").glob("setback-*.txt")).read_text().split()
    assert {"tiny-3", "tiny-11"} & set(named)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_not_finite_steps_are_survived_as_the_policy_says(tmp_path: Path, policy: str) -> None:
    trio = small_trio()
    health = {"nonfinite": policy, "every": 2, "max_recoveries": 50}
    settings = small_settings(health=health, train={"epochs": 2}, checkpoint={"every_steps": 1})
    assert pretrain(trio, Poisoned(24), settings, tmp_path / "run").status == "done"
    assert len(list((tmp_path / "run").glob("setback-*.txt"))) > 0
    assert all(p.isfinite().all() for p in trio.backbone.parameters())


def test_recoveries_are_bounded(tmp_path: Path) -> None:
    settings = small_settings(health={"nonfinite": "skip", "max_recoveries": 1})
    with pytest.raises(DivergedError, match="recovered 1 times"):
        pretrain(small_trio(), Poisoned(24), settings, tmp_path / "run")


class HalfBroken(TinySource):
    """Every fourth image cannot be read."""

    def read(self, index: int) -> Image:
        if index % 4 == 0:
            raise DataError("truncated")
        return super().read(index)


def test_unreadable_images_are_named_counted_and_allowed_up_to_a_limit(tmp_path: Path) -> None:
    settings = small_settings(loader={"max_unreadable": 0.3})
    result = pretrain(small_trio(), HalfBroken(24), settings, tmp_path / "a")
    assert result.summary["unreadable"] == 6
    listed = (tmp_path / "a/unreadable.txt").read_text().splitlines()
    assert listed == [f"tiny-{i}: truncated" for i in range(0, 24, 4)]
    settings = small_settings(loader={"max_unreadable": 0.1})
    with pytest.raises(DataError, match="max_unreadable"):
        pretrain(small_trio(), HalfBroken(24), settings, tmp_path / "b")


def test_a_resumed_run_counts_and_names_what_was_unreadable_before(tmp_path: Path) -> None:
    settings = small_settings(loader={"max_unreadable": 0.3})
    whole = pretrain(small_trio(), HalfBroken(24), settings, tmp_path)
    listed = (tmp_path / "unreadable.txt").read_text()
    shutil.rmtree(tmp_path / "checkpoints/step-00000018")  # as if killed before, two steps are left
    for name in ("status.json", "unreadable.txt"):
        (tmp_path / name).unlink()
    again = pretrain(small_trio(), HalfBroken(24), settings, tmp_path, resume=True)
    assert again.summary["unreadable"] == whole.summary["unreadable"]
    assert (tmp_path / "unreadable.txt").read_text() == listed
