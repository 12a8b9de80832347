"""Fine-tune all parameters until the validation loss stops falling."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dira_core.build import layout, place
from dira_core.draws import shuffled
from dira_core.errors import CheckpointError, DivergedError
from dira_core.evaluate import evaluating, pieces
from dira_core.files import writing
from dira_core.memory import keep_freed
from dira_core.optim import build_optimizer, like_parameters, set_lr
from dira_core.optimizer_state import flatten_optimizer, unflatten_optimizer
from dira_core.precision import Precision
from dira_core.roles import trainable
from dira_core.tensorfiles import read_tensors, write_tensors
from dira_core.transfer.images import Task
from dira_core.transfer.plan import Plan, Training
from dira_core.transfer.splits import Array, Split, training_on
from dira_core.types import Progress

STATE, BEST = "state.safetensors", "network.safetensors"

SAVE_SECONDS = 20.0
"""Between two savings, so that they take no time to speak of."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Course:
    """How far a training is.

    Attributes:
        epoch: Epochs done.
        best: Lowest validation loss so far.
        best_epoch: The epoch that had it, counted from 1.
        waited: Epochs without a lower one since the rate was last lowered.
        scale: What plateaus left of the rate.
        history: Of every epoch: training loss, validation loss or None, part of the rate left.
    """

    epoch: int = 0
    best: float = math.inf
    best_epoch: int = 0
    waited: int = 0
    scale: float = 1.0
    history: list[dict[str, float | None]] = field(default_factory=list)

    def over(self, training: Training) -> bool:
        """Say whether training ends: by its length, or because nothing got better."""
        waiting = self.epoch - self.best_epoch
        return self.epoch >= training.epochs or (self.epoch > 0 and waiting >= training.patience)

    def judge(self, train: float, validation: float | None, plateau: int | None) -> bool:
        """Note an epoch; halve the rate after a plateau; return whether it is the best so far.

        Without validation the last epoch is.
        """
        self.epoch += 1
        self.history.append({"train": train, "validation": validation, "rate": self.scale})
        if validation is None or validation < self.best:
            self.best = math.inf if validation is None else validation
            self.best_epoch, self.waited = self.epoch, 0
            return True
        self.waited += 1
        if plateau is not None and self.waited > plateau:
            self.scale, self.waited = self.scale / 2, 0
        return False


class FineTuning:
    """Train a network on a task, from where its folder says it was.

    Batch-norm statistics are those of this training from its first step on: the average of all
    batches until a running one spans as many. An untrained network's own (0 and 1) or a pretrained
    one's (of distorted crops) would spoil what is validated in the first fifty steps.

    Args:
        network: Whole, on the CPU.
        task: Makes batches.
        loss: Of the network's output, truth, and where it is known.
        split: Which images; without a validation part training ends when `Training.unwatched` says.
        plan: How.
        precision: Number format and device.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        loss: Loss,
        split: Split,
        plan: Plan,
        precision: Precision,
    ) -> None:
        self.network, self.task, self.loss = network, task, loss
        self.split, self.plan, self.precision = split, plan, precision
        self.training = training_on(split, plan.training)
        place(network, precision.device, channels_last=plan.channels_last)
        keep_freed(precision.device)
        self._optimizer = build_optimizer(
            [{"params": trainable([network])}], self.training.optimizer, self.training.batch_size
        )
        self._norms = [
            (module, module.momentum)
            for module in network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is not None
        ]
        self.course = Course()

    def fit(self, folder: Path, said: Callable[[str], None]) -> None:
        """Train until it is over; leave the network with its best weights, in evaluation mode.

        Args:
            folder: Holds the state while it trains, and the best network.
            said: Takes a line for every epoch.

        Raises:
            DivergedError: A loss is not finite.
            CheckpointError: What the folder holds cannot be continued.
        """
        if (folder / STATE).exists():
            self._resume(folder)
            said(f"goes on after epoch {self.course.epoch}")
        saved = time.monotonic()
        while not self.course.over(self.training):
            train = self._epoch()
            validation = self.validation_loss()
            self._check(train, validation)
            best = self.course.judge(train, validation, self.training.plateau)
            said(_line(self.course.epoch, train, validation, best))
            with writing(folder):
                if best:
                    write_tensors(folder / BEST, self.network.state_dict())
                if time.monotonic() - saved >= SAVE_SECONDS:
                    self._save(folder)
                    saved = time.monotonic()
        self.network.load_state_dict(read_tensors(folder / BEST))
        self.network.eval()

    def validation_loss(self) -> float | None:
        """Return the loss on whole images of the validation part, averaged over images, if any."""
        if not len(self.split.validation):
            return None
        total = 0.0
        with evaluating(self.network):
            for piece in pieces(self.split.validation, self.training.batch_size):
                total += float(self._loss(*self.task.batch(piece))) * len(piece)
        return total / len(self.split.validation)

    def predict(self, images: Tensor) -> Tensor:
        """Return the network's output on the CPU, in float32."""
        with evaluating(self.network), self.precision.autocast():
            output: Tensor = self.network(self._placed(images))
        return output.float().cpu()

    def _epoch(self) -> float:
        training, course, n = self.training, self.course, len(self.split.train)
        passes, steps = training.passes(n), training.steps(n)
        total = torch.zeros(())
        self.network.train()
        for step, (piece, which) in enumerate(self._batches(course.epoch, passes)):
            done = course.epoch * steps + step
            progress = Progress(done, training.epochs * steps, course.epoch, training.epochs)
            set_lr(self._optimizer, training.optimizer, progress)
            for group in self._optimizer.param_groups:
                group["lr"] *= course.scale
            for norm, momentum in self._norms:
                norm.momentum = max(momentum, 1 / (done + 1))
            loss = self._loss(*self.task.crops(piece, which))
            self._optimizer.zero_grad(set_to_none=True)
            self.precision.backward(loss)
            self.precision.unscale(self._optimizer)
            if training.optimizer.clip is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), training.optimizer.clip)
            self.precision.step([self._optimizer])
            total += loss.detach().cpu() * len(piece)
        return float(total) / (n * passes)

    def _batches(self, epoch: int, passes: int) -> Iterator[tuple[Array, int]]:
        """Yield the images of each step of an epoch, and the number of the pass they belong to."""
        for number in range(epoch * passes, (epoch + 1) * passes):
            order = shuffled(len(self.split.train), seed=self.plan.seed, epoch=number).numpy()
            for piece in pieces(self.split.train[order], self.training.batch_size):
                yield piece, number

    def _loss(self, images: Tensor, truth: Tensor, known: Tensor) -> Tensor:
        device = self.precision.device
        with self.precision.autocast():
            output = self.network(self._placed(images))
        return self.loss(output, truth.to(device), known.to(device))

    def _placed(self, images: Tensor) -> Tensor:
        images = images.to(self.precision.device)
        if not self.plan.channels_last:
            return images
        return images.to(memory_format=layout(images.dim()))

    def _check(self, *losses: float | None) -> None:
        if not all(math.isfinite(loss) for loss in losses if loss is not None):
            raise DivergedError(
                f"the loss of epoch {self.course.epoch + 1} is not finite: use a smaller rate "
                "(training.optimizer.lr) or --set precision=fp32"
            )

    def _save(self, folder: Path) -> None:
        tensors, rest = flatten_optimizer(self._optimizer.state_dict())
        named = {f"optimizer/{name}": tensor for name, tensor in tensors.items()}
        named |= {f"network/{name}": t for name, t in self.network.state_dict().items()}
        about = {
            "course": dataclasses.asdict(self.course),
            "optimizer": rest,
            "scaler": self.precision.state_dict(),
        }
        write_tensors(folder / STATE, named, {"transfer": json.dumps(about)})

    def _resume(self, folder: Path) -> None:
        path = folder / STATE
        try:
            tensors = read_tensors(path)
            with safe_open(path, "pt") as file:
                about: dict[str, Any] = json.loads(file.metadata()["transfer"])
            self.network.load_state_dict(_under("network/", tensors))
            optimizer = unflatten_optimizer(_under("optimizer/", tensors), about["optimizer"])
            self._optimizer.load_state_dict(optimizer)
            like_parameters(self._optimizer)
            self.precision.load_state_dict(about["scaler"])
            self.course = Course(**about["course"])
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} cannot be continued: remove it to start again, or use another --out"
            ) from error


def _line(epoch: int, train: float, validation: float | None, best: bool) -> str:
    line = f"epoch {epoch}  train {train:.4g}"
    if validation is None:
        return line
    return f"{line}  validation {validation:.4g}{'  best so far' if best else ''}"


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
