"""A run in its folder: alarms and their policies, observers, trackers, what a resume continues."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from distributions import offered
from parts import outcome, small_run, small_settings, small_trio
from PIL import Image as PillowImage
from torch import Tensor

from dira_core import Discriminator, Encodings, Objective, Progress, pace
from dira_core.api import Result, pretrain
from dira_core.errors import CheckpointError, DivergedError, PluginError
from dira_core.lines import read_lines
from dira_core.plugins import installed
from dira_core.testing import TinySource
from dira_core.trio import Trio

OBSERVER = """
from dira_core import hookimpl

events = []

@hookimpl
def dira_run_started(folder, progress):
    events.append(("run started", folder.name, progress.step))

@hookimpl
def dira_step_ended(progress, metrics):
    events.append(("step ended", progress.step, metrics["losses/total"]))

@hookimpl
def dira_epoch_ended(progress):
    events.append(("epoch ended", progress.step, progress.epoch))

@hookimpl
def dira_checkpoint_saved(path, progress):
    assert (path / "MANIFEST.json").exists()
    events.append(("checkpoint saved", path.name, progress.step))

@hookimpl
def dira_run_ended(folder, status):
    events.append(("run ended", folder.name, status))
"""

RAISING = """
from dira_core import hookimpl

@hookimpl
def {event}:
    raise ZeroDivisionError("by hand")
"""

TRACKERS = """
from dira_core import Component, Options, Tracker, hookimpl

events, pictures = [], []

class Kept(Tracker):
    def log(self, step, metrics):
        events.append((step, dict(metrics)))

    def images(self, step, images):
        pictures.extend((step, name, picture) for name, picture in images.items())

    def close(self):
        events.append("closed")

class Broken(Tracker):
    def __init__(self, where):
        self.where = where

    def log(self, step, metrics):
        if self.where == "log":
            raise RuntimeError("no network")

    def close(self):
        if self.where == "close":
            raise RuntimeError("no network")

@hookimpl
def dira_trackers():
    yield Component("kept", Options, lambda options, folder: Kept(), summary="keeps")
    for where in ("log", "close"):
        build = lambda options, folder, where=where: Broken(where)
        yield Component(f"broken-{where}", Options, build, summary="raises")
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Install a fake distribution and return its module."""
    with ExitStack() as stack:

        def install(code: str) -> Any:
            module = stack.enter_context(offered(tmp_path, "observer", code))
            installed()
            return importlib.import_module(module)

        yield install


class Said:
    """A display that remembers every line."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.paces: list[Mapping[str, float]] = []

    def stepped(
        self, progress: Progress, metrics: Mapping[str, float], speed: Mapping[str, float]
    ) -> None:
        self.paces.append(speed)

    def said(self, message: str) -> None:
        self.lines.append(message)

    def about(self, word: str) -> list[str]:
        return [line for line in self.lines if word in line]


class Constant(Discriminator):
    """Collapsed on purpose: every image has the same embedding."""

    def forward(self, encodings: Encodings) -> Objective:
        pooled = encodings[0].pooled
        return Objective(pooled.mean(), embedding=torch.ones_like(pooled) + 1e-6 * pooled)


def collapsing() -> Trio:
    trio = small_trio()
    trio.discriminator = Constant()
    return trio


def run_with(trio: Trio, folder: Path, said: Said, resume: bool = False, **changes: Any) -> Result:
    settings = small_settings(**changes)
    return pretrain(trio, TinySource(24), settings, folder, resume, display=said)


def alarms(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(folder / "metrics.jsonl") if "alarm" in line]


def test_a_collapse_is_said_and_recorded_once_and_the_run_goes_on(tmp_path: Path) -> None:
    said = Said()
    assert run_with(collapsing(), tmp_path / "run", said).status == "done"
    heard = said.about("health: collapse:")
    assert len(heard) == 1
    assert "since step 3" in heard[0]
    assert {"step": 7, "alarm": "collapse", "since": 3} in alarms(tmp_path / "run")


def test_a_collapse_stops_the_run_where_the_policy_says_so(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="collapse: embeddings hardly differ") as caught:
        run_with(collapsing(), tmp_path / "run", Said(), health={"policy": "stop"})
    assert caught.value.exit_code == 5
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["status"] == "diverged"
    assert "collapse" in status["reason"]
    assert (tmp_path / "run/checkpoints/step-00000004/MANIFEST.json").exists()


def test_a_collapse_rolls_back_only_so_often(tmp_path: Path) -> None:
    said = Said()
    health = {"policy": "rollback", "max_recoveries": 3}
    with pytest.raises(DivergedError, match="recovered 3 times$"):
        run_with(collapsing(), tmp_path / "run", said, health=health)
    assert len(said.about("resumed from step-00000004")) == 3


def test_a_healthy_run_raises_no_alarm(tmp_path: Path) -> None:
    said = Said()
    run_with(small_trio(), tmp_path / "run", said, train={"epochs": 6})
    assert said.about("health") == []
    assert alarms(tmp_path / "run") == []


def test_after_a_rollback_order_and_draws_are_fresh_ones(tmp_path: Path) -> None:
    bad = iter([*[False] * 5, True, *[False] * 40])
    trio = small_trio()
    assert trio.discriminator is not None
    trio.discriminator.register_forward_hook(
        lambda module, given, out: Objective(out.loss * math.nan) if next(bad) else out
    )
    health = {"nonfinite": "rollback"}
    views = {"discriminator_sees": "image"}
    run_with(trio, tmp_path / "run", Said(), health=health, views=views, log={"probe": False})
    small_run(tmp_path / "plain", log={"probe": False})
    found, plain = (
        [line["losses/res"] for line in read_lines(tmp_path / name / "metrics.jsonl")]
        for name in ("run", "plain")
    )
    assert len(found) == len(plain) == 18
    assert found[:4] == plain[:4]
    assert all(a != b for a, b in zip(found[4:], plain[4:], strict=True))


def test_observers_hear_every_event_in_order(tmp_path: Path, plugin: Callable[[str], Any]) -> None:
    events = plugin(OBSERVER).events
    saves = {"every_steps": 4, "background": False}
    small_run(tmp_path / "run", train={"epochs": 2, "batch_size": 8}, checkpoint=saves)
    totals = {
        line["step"]: line["losses/total"] for line in read_lines(tmp_path / "run/metrics.jsonl")
    }

    def step(number: int) -> tuple[str, int, float]:
        return "step ended", number, totals[number]

    assert events == [
        ("checkpoint saved", "step-00000000", 0),
        ("run started", "run", 0),
        *map(step, (1, 2, 3)),
        ("epoch ended", 3, 1),
        step(4),
        ("checkpoint saved", "step-00000004", 4),
        *map(step, (5, 6)),
        ("epoch ended", 6, 2),
        ("checkpoint saved", "step-00000006", 6),
        ("run ended", "run", "done"),
    ]


def test_observers_hear_of_a_background_save_when_it_is_complete_and_which_step_it_is(
    tmp_path: Path, plugin: Callable[[str], Any]
) -> None:
    events = plugin(OBSERVER).events
    small_run(tmp_path / "run", checkpoint={"every_steps": 1, "keep": 99})
    saved = [event for event in events if event[0] == "checkpoint saved"]
    assert saved == [("checkpoint saved", f"step-{n:08d}", n) for n in range(19)]
    assert events[-1] == ("run ended", "run", "done")
    for event in saved[1:]:
        before = [step for kind, step, _ in events[: events.index(event)] if kind == "step ended"]
        assert before[-1] - event[2] in (0, 1)  # a save waits for the one before


def test_a_checkpoint_never_points_beyond_lines_that_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk: dict[str, int] = {}
    fsync, rename, checked = os.fsync, Path.rename, []

    def noted(file: int) -> None:
        on_disk[os.path.basename(os.readlink(f"/proc/self/fd/{file}"))] = os.fstat(file).st_size
        fsync(file)

    def committed(self: Path, target: Path) -> Path:
        if target.name.startswith("step-"):
            state = json.loads((self / "state.json").read_bytes())
            for log in ("metrics", "speed"):
                assert state[log] <= on_disk.get(f"{log}.jsonl", 0)
            checked.append(state["metrics"])
        return rename(self, target)

    monkeypatch.setattr("os.fsync", noted)
    monkeypatch.setattr(Path, "rename", committed)
    small_run(tmp_path / "run", checkpoint={"every_steps": 2})
    assert len(checked) == 10
    assert sorted(set(checked)) == checked


def test_observers_hear_how_a_failed_run_ended(
    tmp_path: Path, plugin: Callable[[str], Any]
) -> None:
    events = plugin(OBSERVER).events
    with pytest.raises(DivergedError):
        run_with(collapsing(), tmp_path / "run", Said(), health={"policy": "stop"})
    assert events[-1] == ("run ended", "run", "diverged")


@pytest.mark.parametrize(
    "event",
    [
        "dira_run_started(folder)",
        "dira_step_ended(progress)",
        "dira_epoch_ended(progress)",
        "dira_checkpoint_saved(path)",
    ],
)
def test_an_observer_that_raises_is_named(
    tmp_path: Path, plugin: Callable[[str], Any], event: str
) -> None:
    plugin(RAISING.replace("{event}", event))
    name = event.partition("(")[0]
    with pytest.raises(PluginError, match=rf"'observer' raised in {name} \(ZeroDivisionError"):
        small_run(tmp_path / "run")
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "failed"


def test_an_observer_of_the_end_that_raises_changes_nothing(
    tmp_path: Path, plugin: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    plugin(RAISING.replace("{event}", "dira_run_ended(status)"))
    assert small_run(tmp_path / "run", train={"epochs": 1}).status == "done"
    assert "'observer' raised in dira_run_ended" in caplog.text


def test_trackers_get_what_is_logged_and_are_closed(
    tmp_path: Path, plugin: Callable[[str], Any]
) -> None:
    module = plugin(TRACKERS)
    events = module.events
    small_run(tmp_path / "run", train={"epochs": 1}, log={"trackers": ["kept"]})
    lines = list(read_lines(tmp_path / "run/metrics.jsonl"))
    assert [step for step, _ in events[:-1]] == [line["step"] for line in lines]
    for (_, metrics), line in zip(events[:-1], lines, strict=True):
        assert metrics["losses/total"] == line["losses/total"]
        assert metrics["images_per_s"] > 0
    assert events[-1] == "closed"
    ((step, name, picture),) = module.pictures
    assert (step, name) == (lines[-1]["step"], "restored")
    saved = np.asarray(PillowImage.open(tmp_path / "run/images/restored.png"))
    assert np.array_equal(saved[::2, ::2], picture)


@pytest.mark.parametrize("where", ["log", "close"])
def test_a_tracker_that_raises_is_left_out_with_one_message(
    tmp_path: Path, plugin: Callable[[str], Any], where: str
) -> None:
    events, said = plugin(TRACKERS).events, Said()
    trackers = [f"broken-{where}", "kept"]
    result = run_with(small_trio(), tmp_path / "run", said, log={"trackers": trackers})
    assert result.status == "done"
    assert said.about("tracker") == ["tracker Broken failed and is left out: no network"]
    assert len(events) == 18 + 1


def test_a_resumed_run_counts_its_speed_from_where_it_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DivergedError):
        run_with(collapsing(), tmp_path / "run", Said(), health={"policy": "stop"})
    ticks = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(pace, "time", ticks)
    said = Said()
    run_with(collapsing(), tmp_path / "run", said, resume=True)
    assert said.about("resumed from step-00000004: epoch 1 of 3, step 4 of 18")
    assert all(0 < pace["images_per_s"] <= 4 for pace in said.paces)  # four images a step, a tick
    steps = [line["step"] for line in read_lines(tmp_path / "run/speed.jsonl")]
    assert steps == list(range(1, 19))


def test_no_checkpoint_but_a_history_is_refused_rather_than_started_anew(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        run_with(collapsing(), tmp_path / "run", Said(), health={"policy": "stop"})
    for path in sorted((tmp_path / "run/checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        run_with(collapsing(), tmp_path / "run", Said(), resume=True)


def test_a_run_that_died_before_its_first_checkpoint_starts_from_the_beginning(
    tmp_path: Path,
) -> None:
    small_run(tmp_path / "whole")
    died = tmp_path / "run"
    died.mkdir()
    (died / "status.json").write_text('{"status": "running"}')
    small_run(died, resume=True)
    assert outcome(died) == outcome(tmp_path / "whole")


class Clustering(Constant):
    """Ask for features of the whole source in every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.features: list[Tensor] = []

    def epoch_started(self, progress: Progress, features: Callable[[], Tensor]) -> None:  # type: ignore[override]
        self.features.append(features())


def test_a_discriminator_gets_features_of_every_image_at_the_start_of_an_epoch(
    tmp_path: Path,
) -> None:
    trio = small_trio()
    trio.discriminator = role = Clustering()
    run_with(trio, tmp_path / "run", Said())
    assert [tuple(f.shape) for f in role.features] == [(24, 16)] * 3
    assert not torch.equal(role.features[0], role.features[1])
    assert trio.backbone.training


def test_workers_end_with_a_failed_run_whose_error_is_kept(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    changes: dict[str, Any] = {"health": {"policy": "stop"}, "loader": {"workers": 1}}
    with pytest.raises(DivergedError) as kept:
        run_with(collapsing(), tmp_path / "run", Said(), **changes)
    for worker in set(multiprocessing.active_children()) - before:
        worker.join(10)
        assert not worker.is_alive()
    assert kept.traceback  # keeps the loader from being collected, as a notebook does
