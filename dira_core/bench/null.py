"""A run that computes nothing: what the engine itself costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dira_core.data.dataset import Making
from dira_core.optim import build_optimizer
from dira_core.optimizer_options import Optimizer
from dira_core.parallel import Alone
from dira_core.players import Losses, Player, Turn
from dira_core.plugins import installed
from dira_core.precision import Precision
from dira_core.roles import FeaturePass
from dira_core.runfolder import RunFolder
from dira_core.session import Session
from dira_core.settings import Settings
from dira_core.signals import Stop
from dira_core.testing import TinySource
from dira_core.trainer import Trainer
from dira_core.watching import Silent


class NoFeatures(FeaturePass):
    """Features nobody asks for in a benchmark."""

    def __call__(self) -> Tensor:
        """Refuse."""
        raise AssertionError("a benchmarked step starts no epoch")


class NullPlayer(Player):
    """Compute nothing: a loss that asks for no work, one parameter that never moves."""

    name = "model"

    def __init__(self) -> None:
        self.module = self.wrapped = nn.Linear(1, 1, bias=False)
        self.strategy = Alone()
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

    def __init__(self) -> None:
        self.unreadable: dict[int, str] = {}
        self.spent = Making()

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
