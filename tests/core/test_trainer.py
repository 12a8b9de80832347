"""The loop steps every player once, on rates, draws and micro-batches that follow the recipe."""

from __future__ import annotations

import copy
import itertools
import math
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import forked, outcome, small_settings, small_trio
from torch import Tensor, nn

from dira_core import Adversary, Discriminator, Encodings, Objective, Restorer, View
from dira_core.api import pretrain
from dira_core.data.dataset import Crops
from dira_core.game import Game
from dira_core.lines import read_lines
from dira_core.roles import FeaturePass
from dira_core.settings import Settings
from dira_core.testing import TinySource
from dira_core.trainer import Setback, Trainer, seed_step
from dira_core.trio import Trio
from dira_core.types import Progress


class Pooled(Discriminator):
    """Means of the views agree, after dropout; no batch statistics."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Linear(4, 6)
        self.dropout = nn.Dropout(dropout)
        self.stepped: list[Progress] = []
        self.started: list[Progress] = []
        self.register_buffer("seen", torch.zeros(()))
        self.seen: Tensor

    def forward(self, encodings: Encodings) -> Objective:
        self.seen += 1
        z1, z2 = (self.dropout(self.head(encodings[i].pooled)) for i in range(2))
        return Objective((z1 - z2.detach()).square().sum(1).mean(), embedding=z1)

    def after_step(self, progress: Progress) -> None:
        self.stepped.append(progress)

    def epoch_started(self, progress: Progress, features: FeaturePass) -> None:
        self.started.append(progress)


class Plain(nn.Module):
    """A backbone of one convolution."""

    channels, strides, in_channels, dims = (4,), (2,), 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 2, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.conv(images).relu()]


class Undo(Restorer):
    """One transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 1, 2, 2)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        return self.up(pyramid[-1]).sigmoid()

    def distance(self, restored: Tensor, view: View) -> Tensor:
        return (restored - view.crop).square().mean()


class Judge(Adversary):
    """One convolution, LSGAN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 4, 2)

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.conv(image)

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return (real - 1).square().mean() + fake.square().mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean()


def norm_free_trio(dropout: float = 0.0) -> Trio:
    torch.manual_seed(0)
    backbone: Any = Plain()
    return Trio(backbone, Pooled(dropout), Undo(), Judge())


class Watching:
    """Write down what the trainer tells, and raise what is planned after a step."""

    def __init__(self, plan: Mapping[int, Setback] | None = None) -> None:
        self.epochs: list[int] = []
        self.metrics: dict[int, Mapping[str, float]] = {}
        self.setbacks: list[Setback] = []
        self._plan = dict(plan or {})

    def epoch_started(self, trainer: Trainer) -> None:
        self.epochs.append(trainer.progress.epoch)

    def step_ended(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self.metrics[trainer.step] = metrics
        if trainer.step in self._plan:
            raise self._plan.pop(trainer.step)

    def recover(self, trainer: Trainer, setback: Setback) -> None:
        self.setbacks.append(setback)
        trainer.step = 0


def trainer_of(parts: Trio, settings: Settings, images: int = 24) -> Trainer:
    return Game(parts, TinySource(images), settings).trainer


def gradients(trainer: Trainer, pieces: Sequence[Crops]) -> list[Tensor]:
    """Return the gradients a step leaves behind."""
    trainer.train_step(pieces)
    found = [p.grad for player in trainer.players for p in player.module.parameters()]
    assert all(g is not None for g in found)
    return [g.clone() for g in found if g is not None]


@pytest.mark.parametrize("pieces", [2, 4])
def test_accumulated_gradients_are_those_of_the_big_batch(pieces: int) -> None:
    sizes = {"batch_size": 8 // pieces, "accumulate": pieces}
    views = {"geometry": [], "appearance": [], "distort": ["inner-cutout"]}
    big = trainer_of(norm_free_trio(), small_settings(train={"batch_size": 8}, views=views))
    small = trainer_of(norm_free_trio(), small_settings(train=sizes, views=views))
    assert big.images_per_step == small.images_per_step == 8
    assert big.total_steps == small.total_steps
    wanted = gradients(big, next(big.steps()))
    found = gradients(small, next(small.steps()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_the_learning_rate_follows_warm_up_and_cosine_through_a_run(tmp_path: Path) -> None:
    rate = {"name": "sgd", "lr": 0.02, "lr_batch": 8, "warmup_epochs": 1}
    critic = {"name": "adam", "lr": 3e-4, "lr_batch": None, "schedule": "constant"}
    settings = small_settings(optimizer=rate, critic_optimizer=critic, train={"epochs": 4})
    pretrain(small_trio(), TinySource(24), settings, tmp_path / "run")
    lines = list(read_lines(tmp_path / "run/metrics.jsonl"))
    base = 0.02 * 4 / 8
    for line in lines:
        done = line["step"] - 1
        cosine = 0.5 * (1 + math.cos(math.pi * (done - 6) / 18))
        wanted = base * ((done + 1) / 6 if done < 6 else cosine)
        assert line["lr/model"] == pytest.approx(wanted)
        assert line["lr/critic"] == pytest.approx(3e-4)


def test_roles_are_told_of_every_step_and_every_epoch_once(tmp_path: Path) -> None:
    parts = norm_free_trio()
    role = parts.discriminator
    assert isinstance(role, Pooled)
    settings = small_settings(train={"accumulate": 2})
    pretrain(parts, TinySource(24), settings, tmp_path / "run")
    assert role.stepped == [Progress(step, 9, step // 3, 3) for step in range(9)]
    assert role.started == [Progress(step, 9, step // 3, 3) for step in (0, 3, 6)]


def test_metrics_come_when_they_are_due_and_only_then() -> None:
    settings = small_settings(log={"every": 4}, health={"every": 6})
    watcher = Watching()
    trainer_of(norm_free_trio(), settings).fit(watcher)
    assert list(watcher.metrics) == list(range(1, 19))
    measured = {step for step, metrics in watcher.metrics.items() if "gradients/dis" in metrics}
    assert measured == {1, 7, 13}
    assert {step for step, metrics in watcher.metrics.items() if metrics} == measured | {
        4,
        8,
        12,
        16,
        18,  # the last one always
    }


def test_metrics_are_averages_over_micro_batches() -> None:
    settings = small_settings(train={"batch_size": 4, "accumulate": 2})
    trainer = trainer_of(norm_free_trio(), settings)
    pieces = next(trainer.steps())
    single = [
        trainer_of(norm_free_trio(), small_settings(train={"batch_size": 4})).train_step([piece])
        for piece in pieces
    ]
    together = trainer.train_step(pieces)
    for name in ("losses/dis", "losses/res", "losses/adv", "losses/critic", "losses/total"):
        assert together[name] == pytest.approx((single[0][name] + single[1][name]) / 2)


class Skipping(Watching):
    def recover(self, trainer: Trainer, setback: Setback) -> None:
        self.setbacks.append(setback)
        trainer.step += 1


def test_a_setback_of_the_watcher_is_recovered_from_and_the_run_goes_on() -> None:
    alarm = Setback("ill")
    watcher = Watching({5: alarm})
    trainer = trainer_of(norm_free_trio(), small_settings())
    trainer.fit(watcher)
    assert watcher.setbacks == [alarm]
    assert trainer.step == trainer.total_steps
    assert watcher.epochs == [0, 0, 1, 2]


@pytest.mark.parametrize("where", ["losses/dis", "norm/model"])
def test_what_is_not_finite_is_named_before_any_weight_moves(where: str) -> None:
    parts = norm_free_trio()
    trainer = trainer_of(parts, small_settings())
    before = copy.deepcopy(parts)
    role = parts.discriminator
    assert isinstance(role, Pooled)
    if where == "losses/dis":
        role.head.register_forward_hook(lambda *given: given[-1] * math.inf)
    else:
        role.head.weight.register_hook(lambda gradient: gradient * math.nan)
    pieces = next(trainer.steps())
    with pytest.raises(Setback, match=rf"{where}.* not finite at step 0") as caught:
        trainer.train_step(pieces)
    assert caught.value.indices == tuple(pieces[0].index.tolist())
    for old, new in itertools.chain(
        zip(before.backbone.parameters(), parts.backbone.parameters(), strict=True),
        zip(before.discriminator.parameters(), role.parameters(), strict=True),  # type: ignore[union-attr]
    ):
        assert torch.equal(old, new)


def test_a_step_that_is_skipped_leaves_buffers_as_they_were() -> None:
    parts = norm_free_trio()
    role = parts.discriminator
    assert isinstance(role, Pooled)
    trainer = trainer_of(parts, small_settings(health={"nonfinite": "skip"}))
    bad = iter([False, True, *[False] * 30])
    role.head.weight.register_hook(lambda g: g * math.nan if next(bad) else g)

    watcher = Skipping()
    trainer.fit(watcher)
    assert len(watcher.setbacks) == 1
    assert len(role.stepped) == trainer.total_steps - 1
    assert role.seen == trainer.total_steps - 1
    assert watcher.epochs == [0, 1, 2]


def test_a_step_in_fp16_whose_loss_is_not_finite_can_be_skipped() -> None:
    parts = norm_free_trio()
    role = parts.discriminator
    assert isinstance(role, Pooled)
    fp16 = {"train": {"batch_size": 4, "precision": "fp16"}}
    trainer = trainer_of(parts, small_settings(health={"nonfinite": "skip"}, **fp16))
    bad = iter([False, True, *[False] * 60])  # of the second view of the first step
    role.head.register_forward_hook(lambda *given: given[-1] * (math.inf if next(bad) else 1))
    watcher = Skipping()
    trainer.fit(watcher)
    (setback,) = watcher.setbacks
    assert str(setback).startswith("losses/dis, losses/total not finite at step 0")
    assert trainer.step == trainer.total_steps


def test_what_torch_draws_in_a_step_is_a_function_of_seed_and_step() -> None:
    def drawn(seed: int, step: int) -> list[float]:
        seed_step(seed, step, torch.device("cpu"))
        return torch.rand(3).tolist()

    assert drawn(0, 7) == drawn(0, 7)
    everything = [tuple(drawn(seed, step)) for seed in range(20) for step in range(20)]
    assert len(set(everything)) == 400


def run_with_dropout(folder: Path, resume: bool = False) -> None:
    pretrain(norm_free_trio(dropout=0.5), TinySource(24), small_settings(), folder, resume)


def test_a_role_with_dropout_killed_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    run_with_dropout(tmp_path / "whole")

    def die_in_step_10() -> None:
        parts = norm_free_trio(dropout=0.5)
        assert parts.discriminator is not None
        calls = itertools.count()
        parts.discriminator.register_forward_hook(
            lambda *_: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == 10 else None
        )
        torch.rand(5)  # the state torch's generator is left in must not matter
        pretrain(parts, TinySource(24), small_settings(), tmp_path / "run")

    _, status = os.waitpid(forked(die_in_step_10), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    torch.manual_seed(99)
    run_with_dropout(tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_the_order_of_images_covers_every_one_once_an_epoch() -> None:
    trainer = trainer_of(norm_free_trio(), small_settings())
    seen = [int(i) for pieces in trainer.steps() for piece in pieces for i in piece.index]
    assert sorted(seen) == list(range(24))
    assert trainer.next_images() == seen[:8]
    trainer.step = 3
    assert trainer.next_images() == seen[12:20]
