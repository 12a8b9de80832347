"""One run as data: a frozen model, validated as a whole, that knows every installed component."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dira_core.components import Options
from dira_core.plugins import Chosen, Choice

DiscriminatorChoice = Annotated[Choice, Chosen("discriminator")]
RestorerChoice = Annotated[Choice, Chosen("restorer")]
AdversaryChoice = Annotated[Choice, Chosen("adversary")]
DistortionChoice = Annotated[Choice, Chosen("distortion")]
BackboneChoice = Annotated[Choice, Chosen("backbone")]
SourceChoice = Annotated[Choice, Chosen("source")]
TrackerChoice = Annotated[Choice, Chosen("tracker")]


class Loader(Options):
    """How images are read."""

    workers: int = Field(0, ge=0, description="processes that decode and crop; 0 reads in the trainer")
    cache_mb: int = Field(2048, ge=0, description="memory for decoded images, in MiB, over all workers")
    max_unreadable: float = Field(
        0.05, ge=0, le=1, description="part of the images that may be unreadable before the run stops"
    )


class Views(Options):
    """Crop -> view: what the networks see, and what must be restored."""

    size: int = Field(224, ge=8, description="side of a crop in px (each axis)")
    channels: int = Field(1, ge=1, description="channels of an image; grey images are 1")
    scale: tuple[float, float] = Field((0.2, 1.0), description="part of the image's area a crop covers")
    ratio: tuple[float, float] = Field((0.75, 4 / 3), description="width over height of a crop")
    geometry: list[DistortionChoice] = Field(
        default=[], description="applied to input and target alike (flip)"
    )
    appearance: list[DistortionChoice] = Field(
        default=[], description="applied to the input; undone by the Restorer (brightness, blur)"
    )
    distort: list[DistortionChoice] = Field(
        default=[], description="applied after appearance; undone by the Restorer (cut-out, swap)"
    )
    discriminator_sees: Literal["image", "clean"] = Field(
        "image", description="the distorted view, or the view before `distort` (one more forward)"
    )


class Weights(Options):
    """Weights of equation 4."""

    dis: float = Field(1.0, ge=0, description="weight of L_dis")
    res: float = Field(10.0, ge=0, description="weight of L_res")
    adv: float = Field(0.001, ge=0, description="weight of L_adv")


class Optimizer(Options):
    """How one player is optimised."""

    name: Literal["sgd", "adam", "adamw"] = Field("sgd", description="the update rule")
    lr: float = Field(0.03, gt=0, description="learning rate at `lr_batch` images a step")
    lr_batch: int | None = Field(
        256, gt=0, description="lr is scaled by global batch / lr_batch; none never scales"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of adam and adamw")
    weight_decay: float = Field(1e-4, ge=0, description="on every parameter, as the public code does")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear warm-up")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; none never clips")


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
    deterministic: bool = Field(True, description="same recipe, seed and machine give the same bits")


class Health(Options):
    """When to raise an alarm, and what to do then."""

    policy: Literal["warn", "stop", "rollback"] = Field(
        "warn", description="on collapse, a critic that won, or a restorer that returns the mean"
    )
    nonfinite: Literal["stop", "skip", "rollback"] = Field(
        "stop", description="on a loss or gradient that is not finite; weights are never touched by it"
    )
    max_recoveries: int = Field(10, ge=0, description="skips and rollbacks before the run stops")
    every: int = Field(50, ge=1, description="steps between health and gradient measurements")


class Checkpoint(Options):
    """When to save, and how much to keep."""

    every_steps: int = Field(500, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=2, description="checkpoints kept")


class Log(Options):
    """What is written while training."""

    every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    probe: bool = Field(True, description="kNN probe before and after, where the source has labels")
    trackers: list[TrackerChoice] = Field(default=[], description="where metrics go besides")


class Recipe(Options):
    """One run: everything that decides its outcome, and nothing else."""

    seed: int = Field(0, ge=0, lt=2**32, description="of every random number of the run")
    data: SourceChoice = Field(description="where images come from")
    loader: Loader = Field(default_factory=Loader)
    views: Views = Field(default_factory=Views)
    backbone: BackboneChoice = Field(description="the encoder that is pretrained")
    discriminator: DiscriminatorChoice | None = Field(None, description="L_dis; none leaves it out")
    restorer: RestorerChoice | None = Field(None, description="L_res; none leaves it out")
    adversary: AdversaryChoice | None = Field(None, description="L_adv; none leaves it out")
    weights: Weights = Field(default_factory=Weights)
    optimizer: Optimizer = Field(default_factory=Optimizer, description="of the model")
    critic_optimizer: Optimizer = Field(default_factory=Optimizer, description="of the critic")
    train: Train = Field(default_factory=Train)
    health: Health = Field(default_factory=Health)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    log: Log = Field(default_factory=Log)
