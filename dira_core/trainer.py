"""The training loop: players take turns on micro-batches, then all of them step."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from dira_core.data.dataset import Crops, Making
from dira_core.distributed import average, gather_rows, gathered, highest, world_size
from dira_core.health import gradient_report, restoration_report
from dira_core.metrics import embedding_stats
from dira_core.nn.sync_norm import average_norms
from dira_core.optim import gradient_norm, set_lr
from dira_core.optimizer_options import Optimizer as OptimizerOptions
from dira_core.players import Losses, Player, Turn, first_rows
from dira_core.precision import Precision
from dira_core.settings import Settings
from dira_core.types import Batch, Progress


class Batches(Protocol):
    """Where micro-batches of crops come from."""

    batches_per_epoch: int
    batch_size: int

    @property
    def spent(self) -> Making:
        """What all crops so far took, by whoever made them."""

    @property
    def unreadable(self) -> dict[int, str]:
        """Images met so far that cannot be read, and why."""

    def order(self, epoch: int, salt: int) -> Tensor:
        """Return the order of the images in an epoch, (N,)."""

    def batches(self, epoch: int, start: int, salt: int) -> Iterator[Crops]:
        """Yield the crops of an epoch from image number `start` of its order on."""


class ViewMaker(Protocol):
    """What turns crops into views, on the device."""

    def __call__(self, crops: Crops, epoch: int, salt: int) -> Batch:
        """Apply geometry, appearance and distortions."""


class Watcher(Protocol):
    """Who follows a run: logs, health, checkpoints, signals. Ends it by raising."""

    def epoch_started(self, trainer: Trainer) -> None:
        """Prepare an epoch."""

    def step_ended(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step (none unless due); raise to end the run, or `Setback`."""

    def recover(self, trainer: Trainer, setback: Setback) -> None:
        """Skip the step, go back to a checkpoint, or raise."""


class Setback(Exception):  # noqa: N818 - not an error until the policy says so
    """Something that a recovery policy decides about.

    Args:
        reason: What happened.
        indices: Images of the step, where they are to blame.
    """

    def __init__(self, reason: str, indices: Sequence[int] = ()) -> None:
        super().__init__(reason)
        self.indices = tuple(indices)


class Trainer:
    """Train players until the last step.

    Args:
        players: Stepped together, the model first.
        optimizers: Options of each player's optimizer, by the player's name.
        loader: Yields crops.
        views: Makes views of them.
        precision: Of every player.
        settings: Of the run.

    Attributes:
        step: Optimizer steps done.
        salt: Times the run went back; draws and order after that are fresh ones.
        waited: Seconds spent waiting for crops.
        viewed: Seconds spent on making views of them.
    """

    def __init__(
        self,
        players: Sequence[Player],
        optimizers: Mapping[str, OptimizerOptions],
        loader: Batches,
        views: ViewMaker,
        precision: Precision,
        settings: Settings,
    ) -> None:
        self.players = players
        self.optimizers = optimizers
        self.loader = loader
        self.views = views
        self.precision = precision
        self.settings = settings
        self.step = 0
        self.salt = 0
        self.waited = self.viewed = 0.0
        self.steps_per_epoch = loader.batches_per_epoch // settings.train.accumulate
        self.total_steps = self.steps_per_epoch * settings.train.epochs

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        epoch = self.step // self.steps_per_epoch
        return Progress(self.step, self.total_steps, epoch, self.settings.train.epochs)

    @property
    def images_per_step(self) -> int:
        """Source images of one optimizer step: the global batch."""
        return self.loader.batch_size * world_size() * self.settings.train.accumulate

    def next_images(self) -> list[int]:
        """Return the first few images of the next step: a resumed run checks itself by them."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        start = done * self.images_per_step
        return [int(i) for i in self.loader.order(epoch, self.salt)[start : start + 8]]

    def fit(self, watcher: Watcher) -> None:
        """Train from the current step to the last one."""
        skips = self.settings.health.nonfinite == "skip"
        while self.step < self.total_steps:
            try:
                if self.step % self.steps_per_epoch == 0:
                    watcher.epoch_started(self)
                for pieces in self.steps():
                    with buffers_kept(p.module for p in self.players) if skips else nullcontext():
                        metrics = self.train_step(pieces)
                    self.step += 1
                    watcher.step_ended(self, metrics)
            except Setback as setback:
                watcher.recover(self, setback)

    def train_step(self, pieces: Sequence[Crops]) -> dict[str, float]:
        """Step every player once on the micro-batches of a step.

        Returns:
            Metrics, averaged over the micro-batches; empty unless this step is due for logging.

        Raises:
            Setback: A loss or gradient is not finite; no weight has changed.
        """
        here, examine = self.progress, self.step % self.settings.health.every == 0
        done = here.step + 1
        seed_step(self.settings.seed, self.step, self.precision.device)
        for player in self.players:
            set_lr(player.optimizer, self.optimizers[player.name], here)
            player.module.zero_grad()  # a third of the price of the optimizer's
        found: list[dict[str, Tensor]] = []
        for number, piece in enumerate(pieces, 1):
            started = time.perf_counter()
            turn = Turn(self.views(piece, here.epoch, self.salt), here)
            self.viewed += time.perf_counter() - started
            with accumulating(self.players) if number < len(pieces) else nullcontext():
                found.append(self._play(turn, len(pieces), examine))
        if self.precision.scales:  # a step given up once gradients are unscaled could not be redone
            self._check_finite(found, pieces)
        norms = {f"norm/{player.name}": self._clip(player) for player in self.players}
        if not self.precision.scales:
            self._check_finite([*found, norms], pieces)
        self.precision.step([player.optimizer for player in self.players])
        for player in self.players:
            average_norms(player.module)
            player.after_step(here)
        if examine or done % self.settings.log.every == 0 or done == here.total_steps:
            rates = {f"lr/{p.name}": p.optimizer.param_groups[-1]["lr"] for p in self.players}
            return averaged([m | norms for m in found]) | rates
        return {}

    def _play(self, turn: Turn, pieces: int, examine: bool) -> dict[str, Tensor]:
        """Let every player add the gradient of its losses; return what there is to log."""
        found: dict[str, Tensor] = {}
        for player in self.players:
            with self.precision.autocast():
                losses = player.losses(turn)
            found |= losses.metrics
            if examine:
                found |= examined(player, losses, self.precision.scale)
            share = losses.total if pieces == 1 else losses.total / pieces
            self.precision.backward(share, player.inputs)
        return found | (restoration(turn.batch, turn.restored) if examine else {})

    def steps(self) -> Iterator[list[Crops]]:
        """Yield the micro-batches of one step after the other, to the end of the epoch."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        crops = self.loader.batches(epoch, done * self.images_per_step, self.salt)
        for _ in range(done, self.steps_per_epoch):
            started = time.perf_counter()
            pieces = list(itertools.islice(crops, self.settings.train.accumulate))
            self.waited += time.perf_counter() - started
            yield pieces

    def _clip(self, player: Player) -> Tensor:
        """Unscale and clip a player's gradients; return their norm before."""
        self.precision.unscale(player.optimizer)
        parameters = [p for group in player.optimizer.param_groups for p in group["params"]]
        norm = gradient_norm(parameters)
        clip = self.optimizers[player.name].clip
        if clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        return norm

    def _check_finite(self, found: Sequence[Mapping[str, Tensor]], pieces: Sequence[Crops]) -> None:
        """Raise a setback that names what is not finite, before it can reach a weight."""
        watched = [
            (k, v) for m in found for k, v in m.items() if k.startswith(("losses/", "norm/"))
        ]
        fine = not watched or bool(torch.stack([v.float() for _, v in watched]).isfinite().all())
        if highest(not fine) == [0]:
            return
        broken = gathered([name for name, value in watched if not value.isfinite()])
        indices = gathered([int(i) for piece in pieces for i in piece.index])
        names = ", ".join(sorted(set(itertools.chain(*broken))))
        ranks = ", ".join(str(number) for number, found in enumerate(broken) if found)
        place = f" on rank {ranks}" if len(broken) > 1 else ""
        raise Setback(
            f"{names} not finite at step {self.step}{place}", [*itertools.chain(*indices)]
        )


@contextmanager
def buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put batch statistics and queues back when a step is given up: it has written into them."""
    held = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    try:
        yield
    except Setback:
        for buffer, before in held:
            buffer.copy_(before)
        raise


@contextmanager
def accumulating(players: Iterable[Player]) -> Iterator[None]:
    """Add up gradients of micro-batches; processes exchange them with those of the last one."""
    with ExitStack() as stack:
        for player in players:
            stack.enter_context(player.strategy.accumulating(player.wrapped))
        yield


def examined(player: Player, losses: Losses, scale: float) -> dict[str, Tensor]:
    """Measure what pulls at a player: gradients (of this process), spread of embeddings."""
    report: dict[str, Tensor] = {}
    if player.shared:
        report |= gradient_report(losses.terms, player.shared, scale)
    if losses.embedding is not None and len(everyone := gather_rows(losses.embedding)) > 1:
        stats = embedding_stats(everyone)
        report |= {f"embedding/{name}": value for name, value in stats.items()}
    return report


def restoration(batch: Batch, restored: Tensor | None) -> dict[str, Tensor]:
    """Measure what was restored, if anything was."""
    if restored is None:
        return {}
    crops, images = (first_rows(batch, kind, len(restored)) for kind in ("crop", "image"))
    return restoration_report(restored, crops, images)


def averaged(found: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Average scalars over micro-batches and processes."""
    means = torch.stack([torch.stack([m[name].float() for m in found]).mean() for name in found[0]])
    average([means])
    return dict(zip(found[0], means.tolist(), strict=True))


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Make whatever torch draws inside a step (dropout) a function of seed and step.

    All processes draw the same, so that what they compute of gathered rows is the same.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03) % 2**63
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        torch.cuda.manual_seed(mixed)
