"""What the engine costs, against hand-written loops of the same mathematics, alternated."""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from dira_core.api import Game
from dira_core.build import build_source, build_trio
from dira_core.data.loader import Crops
from dira_core.optim import build_optimizer
from dira_core.plugins import installed
from dira_core.precision import Precision
from dira_core.recipe import Optimizer, Recipe, Settings
from dira_core.roles import Encodings, FeaturePass
from dira_core.runfolder import RunFolder
from dira_core.session import Session, Silent
from dira_core.signals import Stop
from dira_core.testing import TinySource
from dira_core.trainer import Trainer
from dira_core.trio import Losses, Player, Trio, Turn
from dira_core.types import Batch

Arm = Callable[[], None]


@dataclass(frozen=True)
class Timing:
    """Seconds of one arm, one for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)


def alternate(arms: Mapping[str, Arm], rounds: int) -> dict[str, Timing]:
    """Time arms in turn, A B C A B C, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for measured in range(-1, rounds):
        for name, arm in arms.items():
            started = time.perf_counter()
            arm()
            if measured >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(found)) for name, found in seconds.items()}


def ratio(timings: Mapping[str, Timing], slow: str, fast: str) -> float:
    """Return the median over rounds of slow / fast, round by round: drift cancels."""
    pairs = zip(timings[slow].seconds, timings[fast].seconds, strict=True)
    return statistics.median(a / b for a, b in pairs)


def step(recipe: Recipe, rounds: int) -> dict[str, Any]:
    """Compare one training step: dira's, a bare loop's, the plain fp32 one's, and a whole run's.

    Returns:
        Medians in ms, ratios, and how busy other processes kept the machine.
    """
    null = statistics.median(null_step() for _ in range(5))  # before caches are full of images
    game = Game(build_trio(recipe), build_source(recipe), recipe)
    crops = next(game.loader.batches(0, 0, 0))
    batch = game.views(crops, 0, 0)
    engine = copy.copy(game.trainer)
    engine.views = lambda crops, epoch, salt: batch
    bare = BareLoop(build_trio(recipe), batch, recipe, game.precision, plain=False)
    plain = BareLoop(build_trio(recipe), batch, recipe, game.precision, plain=True)
    load = os.times()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, WholeRun(recipe, Path(folder)) as whole:
        timings = alternate(
            {
                "dira step": lambda: advance(engine, crops),
                "bare loop": bare.step,
                "plain fp32 step": plain.step,
                "dira run": whole.step,
                "views": lambda: discard(game.views(crops, 0, 0)),
            },
            rounds,
        )
    spent, own = time.perf_counter() - began, os.times()
    used = (own.user - load.user) + (own.system - load.system)
    return {
        "ms": {name: 1000 * timing.median for name, timing in timings.items()},
        "bare loop / dira step": ratio(timings, "bare loop", "dira step"),
        "bare loop / dira run": ratio(timings, "bare loop", "dira run"),
        "plain fp32 step / dira step": ratio(timings, "plain fp32 step", "dira step"),
        "views / dira step": ratio(timings, "views", "dira step"),
        "null step us": null,
        "images/s": recipe.train.batch_size / timings["dira step"].median,
        "precision": game.precision.name,
        "threads": torch.get_num_threads(),
        "cores used": used / spent,
        "rounds": rounds,
    }


def advance(trainer: Trainer, crops: Crops) -> None:
    """Take one step of a trainer; what is done now and then is done in its share."""
    trainer.train_step([crops])
    trainer.step = (trainer.step + 1) % max(1, trainer.total_steps - 1)


def discard(_: Batch) -> None:
    """Do nothing with a batch."""


class BareLoop:
    """The same mathematics written straight down, without an engine.

    Args:
        trio: Freshly built.
        batch: Trained on in every step.
        recipe: Weights and optimizers.
        precision: Of the networks, unless plain.
        plain: fp32, contiguous, the critic's gradients computed in the generator's step and
            dropped, the restored images scored twice: what the public code does.
    """

    def __init__(
        self, trio: Trio, batch: Batch, recipe: Recipe, precision: Precision, *, plain: bool
    ) -> None:
        self._trio, self._weights, self._plain = trio, recipe.weights, plain
        self._precision = Precision("fp32", precision.device) if plain else precision
        self._batch = contiguous(batch) if plain else batch
        roles: list[nn.Module] = [m for m in (trio.discriminator, trio.restorer) if m is not None]
        modules = nn.ModuleList([trio.backbone, *roles]).to(precision.device).train()
        if not plain and recipe.train.channels_last:
            modules = modules.to(memory_format=torch.channels_last)
        groups = [{"params": list(modules.parameters())}]
        self._optimizer = build_optimizer(groups, recipe.optimizer, recipe.train.batch_size)
        if trio.adversary is not None:
            critic = trio.adversary.to(precision.device).train()
            if not plain and recipe.train.channels_last:
                critic = critic.to(memory_format=torch.channels_last)
            groups = [{"params": list(critic.parameters())}]
            self._critic_optimizer = build_optimizer(
                groups, recipe.critic_optimizer, recipe.train.batch_size
            )

    def step(self) -> None:
        """Take one step of generator and critic."""
        trio, weights, batch = self._trio, self._weights, self._batch
        self._optimizer.zero_grad(set_to_none=True)
        with self._precision.autocast():
            encodings = Encodings(trio.backbone, batch)
            loss = torch.zeros(())
            if trio.discriminator is not None:
                loss = loss + weights.dis * trio.discriminator(encodings).loss
            restored = None
            if trio.restorer is not None:
                restored = trio.restorer(encodings[0].pyramid)
                loss = loss + weights.res * trio.restorer.distance(restored, batch.views[0])
        if trio.adversary is None or restored is None:
            torch.autograd.backward(loss)
            self._optimizer.step()
            return
        adversary = trio.adversary
        judged = restored if self._plain else restored.detach().requires_grad_()
        with self._precision.autocast():
            fake = adversary(judged)
            generator = weights.adv * adversary.generator_loss(fake)
        if self._plain:
            torch.autograd.backward(loss + generator)
        else:
            (pull,) = torch.autograd.grad(generator, judged, retain_graph=True)
            torch.autograd.backward(loss + (restored * pull).sum())
        self._critic_optimizer.zero_grad(set_to_none=True)
        with self._precision.autocast():
            if self._plain:
                fake = adversary(restored.detach())
            critic = adversary.critic_loss(adversary(batch.views[0].crop), fake)
        torch.autograd.backward(critic, inputs=list(adversary.parameters()))
        self._optimizer.step()
        self._critic_optimizer.step()


def contiguous(batch: Batch) -> Batch:
    """Return the same batch with its images in row-major order."""
    views = []
    for view in batch.views:
        parts = {k: getattr(view, k).contiguous() for k in ("crop", "clean", "image")}
        views.append(type(view)(**parts, box=view.box, label=view.label))
    return Batch(tuple(views), batch.index, batch.label)


class WholeRun:
    """A run as `dira run` does it - loading, views, logging, health - one step at a time."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._game = Game(build_trio(recipe), build_source(recipe), recipe)
        self._folder = folder / "run"

    def __enter__(self) -> WholeRun:
        game = self._game
        self._home = RunFolder(self._folder).__enter__()
        hook, nothing = installed().hook, NoFeatures()
        self._session = Session(
            self._home, game.source, game.settings, hook, [], Silent(), Stop(), nothing
        )
        self._steps = self._endless()
        return self

    def __exit__(self, *_: object) -> None:
        self._home.__exit__(None, None, None)

    def step(self) -> None:
        """Load, train and log one step."""
        next(self._steps)

    def _endless(self) -> Iterator[None]:
        trainer = self._game.trainer
        while True:
            trainer.step %= trainer.total_steps
            for pieces in trainer.steps():
                metrics = trainer.train_step(pieces)
                trainer.step += 1
                self._session.step_ended(trainer, metrics)
                yield


class NoFeatures(FeaturePass):
    """Features nobody asks for in a benchmark."""

    def __call__(self) -> Tensor:
        """Refuse."""
        raise AssertionError("a benchmarked step starts no epoch")


class NullPlayer(Player):
    """Compute nothing: a loss that asks for no work, one parameter that never moves."""

    name = "model"

    def __init__(self) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        self.optimizer = build_optimizer(
            [{"params": list(self.module.parameters())}], Optimizer(), 1
        )

    def losses(self, turn: Turn) -> Losses:
        """Return the parameter itself."""
        (weight,) = self.module.parameters()
        return Losses(weight.sum())


class NullBatches:
    """Endless nothing, as fast as it can be had."""

    batches_per_epoch = 2000
    batch_size = 1
    unreadable: Mapping[int, str] = MappingProxyType({})

    def order(self, epoch: int, salt: int) -> Tensor:
        """Return the order of the images."""
        return torch.arange(self.batches_per_epoch)

    def batches(self, epoch: int, start: int, salt: int) -> Iterator[Any]:
        """Yield nothing, one step after the other."""
        for _ in range(start, self.batches_per_epoch):
            yield None


def null_step() -> float:
    """Return the microseconds of a step that computes nothing, logging included."""
    settings = Settings.model_validate(
        {"train": {"epochs": 1}, "checkpoint": {"every_steps": 10**6}}
    )
    precision = Precision("fp32", torch.device("cpu"))
    views: Any = lambda crops, epoch, salt: None  # noqa: E731
    optimizers = {"model": settings.optimizer}
    trainer = Trainer([NullPlayer()], optimizers, NullBatches(), views, precision, settings)
    with tempfile.TemporaryDirectory() as folder, RunFolder(Path(folder) / "run") as home:
        hook, source = installed().hook, TinySource()
        session = Session(home, source, settings, hook, [], Silent(), Stop(), NoFeatures())
        started = time.perf_counter()
        trainer.fit(session)
        return 1e6 * (time.perf_counter() - started) / trainer.total_steps
