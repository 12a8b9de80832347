"""A run without its components, as data: what the trainer needs to know."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dira_core.choices import TrackerChoice
from dira_core.components import Options
from dira_core.optimizer_options import Optimizer
from dira_core.view_options import Views


class Loader(Options):
    """How images are read."""

    workers: int = Field(
        0, ge=0, description="processes that decode and crop; 0 reads in the trainer"
    )
    cache_mb: int = Field(
        2048, ge=0, description="memory for decoded images, in MiB, over all workers"
    )
    resize: Literal["workers", "device"] = Field(
        "workers",
        description="where crops get their size; device: on the GPU, for a data cache (its levels "
        "keep what is sent small)",
    )
    max_unreadable: float = Field(
        0.05,
        ge=0,
        le=1,
        description="part of the images that may be unreadable before the run stops",
    )


def _forward(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the earlier epoch must be first")
    return bounds


class Weights(Options):
    """Weights of equation 4."""

    dis: float = Field(1.0, ge=0, description="weight of L_dis")
    res: float = Field(10.0, ge=0, description="weight of L_res")
    adv: float = Field(0.001, ge=0, description="weight of L_adv")
    ramps: dict[
        Literal["dis", "res", "adv"], Annotated[tuple[float, float], AfterValidator(_forward)]
    ] = Field(default={}, description="epochs between which a weight grows from 0, for example adv")

    def at(self, epoch: float) -> dict[str, float]:
        """Return the three weights at a point of time, in epochs from the start."""
        weights = {"dis": self.dis, "res": self.res, "adv": self.adv}
        for name, (first, last) in self.ramps.items():
            done = (epoch - first) / (last - first) if last > first else float(epoch >= first)
            weights[name] *= min(1.0, max(0.0, done))
        return weights


class Train(Options):
    """How long, how many at once, in which precision."""

    epochs: int = Field(100, ge=1, description="passes over the source")
    batch_size: int = Field(256, ge=1, description="images a process and step, before accumulation")
    accumulate: int = Field(1, ge=1, description="micro-batches a step, each of batch_size images")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the device has it, else fp16 on CUDA, else fp32"
    )
    channels_last: bool = Field(True, description="memory layout of images and weights")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the step runs")
    processes: int | None = Field(
        None,
        ge=1,
        description="processes that batch_size is meant for; with more or fewer it is changed so "
        "that the global batch stays; none: as many as there are",
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="of several processes: ddp, each holds the whole model, or fsdp, weights and "
        "optimizer states are spread over them (the critic is always whole)",
    )
    sync_norm: bool = Field(
        False, description="batch norms use the global batch, not that of their process"
    )
    recompute: bool = Field(
        False,
        description="activation checkpointing: forget what is inside each block of backbone and "
        "decoder, and compute it again for the backward pass; the same bits",
    )
    compile: bool = Field(False, description="compile backbone and decoder (torch.compile)")
    timeout_s: float = Field(
        600, gt=0, description="seconds a process waits for the others before the run ends"
    )
    deterministic: bool = Field(
        True, description="same recipe, seed and machine give the same bits"
    )


class Health(Options):
    """When to raise an alarm, and what to do then."""

    policy: Literal["warn", "stop", "rollback"] = Field(
        "warn", description="on collapse, a critic that won, or a restorer that returns the mean"
    )
    nonfinite: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description="on a loss or gradient that is not finite; weights are never touched by it",
    )
    max_recoveries: int = Field(10, ge=0, description="skips and rollbacks before the run stops")
    every: int = Field(50, ge=1, description="steps between health and gradient measurements")


class Checkpoint(Options):
    """When to save, and how much to keep."""

    every_steps: int = Field(500, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=2, description="checkpoints kept")
    background: bool = Field(
        True, description="written by a thread from copies in memory while training goes on"
    )


class Log(Options):
    """What is written while training."""

    every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    probe: bool = Field(True, description="kNN probe before and after, where the source has labels")
    profile: int = Field(
        0, ge=0, description="steps that are profiled after a warm-up, into RUN/profile/"
    )
    trackers: list[TrackerChoice] = Field(default=[], description="where metrics go besides")


class Settings(Options):
    """A run without its components: all the trainer needs to know."""

    seed: int = Field(0, ge=0, lt=2**32, description="of every random number of the run")
    loader: Loader = Field(default_factory=Loader)
    views: Views = Field(default_factory=Views)
    weights: Weights = Field(default_factory=Weights)
    optimizer: Optimizer = Field(default_factory=Optimizer, description="of the model")
    critic_optimizer: Optimizer = Field(default_factory=Optimizer, description="of the critic")
    train: Train = Field(default_factory=Train)
    health: Health = Field(default_factory=Health)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    log: Log = Field(default_factory=Log)
