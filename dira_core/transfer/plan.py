"""What a transfer does, as data: one frozen plan, validated as a whole. No torch here."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from dira_core.choices import RestorerChoice, TargetChoice
from dira_core.components import Choice, Options
from dira_core.data import Window
from dira_core.errors import RecipeError
from dira_core.layering import Layer, assignment, merge
from dira_core.optimizer_options import Optimizer
from dira_core.plugins import Chosen, installed
from dira_core.problems import explain
from dira_core.view_options import Size

Way = Literal["fine-tune", "linear", "knn"]

CHOICES = ("target", "backbone", "decoder")
"""Keys that hold a choice."""

BASE = Layer(
    "defaults of a transfer",
    {
        "training": {
            "optimizer": {
                "name": "adam",
                "lr": 2e-4,
                "lr_batch": None,
                "weight_decay": 0.0,
                "schedule": "constant",
            }
        }
    },
)


class Training(Options):
    """How `fine-tune` trains; the target brings along what was published for it."""

    epochs: int = Field(1000, ge=1, description="passes over the training part, at most")
    batch_size: int = Field(32, ge=2, description="images a step; batches of an epoch are alike")
    least_steps: int = Field(
        20, ge=1, description="steps of an epoch: fewer images are passed over several times"
    )
    least_validation: int = Field(
        20,
        ge=1,
        description="images held back to decide when to stop; where they are fewer, none is: all "
        "train, few_passes times at a falling rate",
    )
    few_passes: int = Field(
        50,
        ge=1,
        description="passes over the images where none decides when to stop; at least, as epochs "
        "are whole",
    )
    patience: int = Field(
        10, ge=1, description="epochs without a lower validation loss before training stops"
    )
    plateau: int | None = Field(
        5, ge=1, description="such epochs in a row before the rate is halved; none never halves"
    )
    crop: tuple[float, float] = Field(
        (0.08, 1.0), description="smallest and largest part of an image that a training crop covers"
    )
    crop_p: float = Field(1.0, ge=0, le=1, description="probability of a crop, else all is seen")
    flip_p: float = Field(0.5, ge=0, le=1, description="probability that left and right change")
    optimizer: Optimizer = Field(default_factory=Optimizer, description="of all parameters")

    def passes(self, images: int) -> int:
        """Return how often an epoch passes over its images."""
        return -(-self.least_steps // -(-images // self.batch_size))

    def steps(self, images: int) -> int:
        """Return how many steps an epoch has."""
        return self.passes(images) * -(-images // self.batch_size)

    def unwatched(self, images: int) -> Training:
        """Return how to train where no image decides when to stop: to an end that is known."""
        epochs = min(self.epochs, -(-self.few_passes // self.passes(images)))
        optimizer = self.optimizer.model_copy(update={"schedule": "cosine"})
        return self.model_copy(update={"epochs": epochs, "plateau": None, "optimizer": optimizer})


class Plan(Options):
    """One transfer: everything that decides its outcome but the weights."""

    target: TargetChoice = Field(description="the labelled task")
    way: Way = Field("fine-tune", description="how the weights are used")
    fraction: float = Field(1.0, gt=0, le=1, description="of the training labels that are used")
    seed: int = Field(0, ge=0, lt=2**32, description="of new layers, of order and of crops")
    split_seed: int = Field(0, ge=0, lt=2**32, description="of random parts")
    label_seed: int = Field(0, ge=0, lt=2**32, description="of which labels a fraction takes")
    backbone: Annotated[Choice | None, Chosen("backbone", optional=True)] = Field(
        None, description="where the weights do not say; none is resnet50"
    )
    decoder: RestorerChoice = Field(
        None, description="for masks, where the weights do not say; none is the one installed"
    )
    channels: int | None = Field(None, ge=1, description="of an image; none: the weights', or 1")
    size: Size | None = Field(
        None,
        description="side of an image in px, or all its sides; none: the weights', or 224 (32 of "
        "a volume)",
    )
    window: Window | None = Field(
        None, description="what maps to 0 and 1; none: as the weights were trained, or auto"
    )
    training: Training = Field(default_factory=Training)
    seen: Literal["warn", "refuse"] = Field(
        "warn", description="what is done where pretraining saw test images"
    )
    k: int = Field(20, ge=1, description="neighbours of knn")
    temperature: float = Field(0.07, gt=0, description="of knn: a neighbour weighs exp(cos / t)")
    cache_mb: int = Field(2048, ge=0, description="memory for decoded images")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where networks run")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of fine-tune, as in a run; frozen features are always fp32"
    )
    channels_last: bool = Field(True, description="memory layout of images and weights")
    deterministic: bool = Field(True, description="the same seed and machine give the same bits")


def transfer_plan(
    target: str,
    data: str | None = None,
    assignments: Sequence[str] = (),
    flags: Sequence[Layer] = (),
    below: Sequence[Layer] = (),
) -> Plan:
    """Put a plan together: flags over assignments over what the target brings along.

    Args:
        target: Name of a target.
        data: Its file or folder, the option `path`.
        assignments: Texts such as "training.epochs=20".
        flags: What named flags say.
        below: What holds where neither says otherwise.

    Raises:
        RecipeError: One error that lists every problem.
        PluginError: The target's plugin is broken.
    """
    component = installed().find("target", target)
    named = {"name": target} if data is None else {"name": target, "path": data}
    if data is None and "path" in component.options.model_fields:
        asked = [text for text in assignments if text.partition("=")[0].strip() == "target.path"]
        if not asked and component.options.model_fields["path"].is_required():
            raise RecipeError(f"target {target!r} needs --data ({component.summary})")
    layers = itertools.chain(
        [BASE, Layer(f"defaults of target {target!r}", component.defaults)],
        [Layer("--target", {"target": named})],
        below,
        map(assignment, assignments),
        flags,
    )
    merged = merge(layers, CHOICES)
    if merged.problems:
        raise RecipeError("; ".join(merged.problems))
    try:
        return Plan.model_validate(merged.values)
    except ValidationError as error:
        raise explain(error, Plan, merged.values, merged.why) from error
