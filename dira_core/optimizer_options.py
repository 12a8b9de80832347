"""How a player is optimised, as a part of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag

from dira_core.components import Options

Momentum = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[PositiveFloat, Tag("rate")]
RateTable = Annotated[dict[PositiveInt, PositiveFloat], Field(min_length=2), Tag("table")]


def _form(lr: object) -> str:
    """Tell a table of rates from a rate, so that a mistake in one is not judged as the other."""
    return "table" if isinstance(lr, Mapping) else "rate"


class Optimizer(Options):
    """How one player is optimised."""

    name: Literal["sgd", "adam", "adamw", "lars"] = Field("sgd", description="the update rule")
    lr: Annotated[Rate | RateTable, Discriminator(_form)] = Field(
        0.03,
        description="learning rate at `lr_batch` images a step, or a table of it by global batch "
        "(between two of its batches linear in their log2)",
    )
    lr_batch: int | None = Field(
        256, gt=0, description="lr is scaled by global batch / lr_batch; none never scales"
    )
    momentum: Momentum = Field(0.9, description="of sgd and lars")
    betas: tuple[Momentum, Momentum] = Field((0.9, 0.999), description="of adam and adamw")
    trust: float = Field(1e-3, gt=0, description="of lars: size of an update over its weight's")
    weight_decay: float = Field(
        1e-4, ge=0, description="on every parameter, as the public code does; see decay_1d"
    )
    decay_1d: bool = Field(
        True, description="whether norms and biases decay too; with lars they never do"
    )
    scale_1d: float = Field(1.0, gt=0, description="factor on the rate of norms and biases")
    schedule: Literal["cosine", "epoch-cosine", "halving", "constant"] = Field(
        "cosine",
        description="of the learning rate; epoch-cosine moves once an epoch, halving halves the "
        "rate every `half_life` epochs",
    )
    half_life: int = Field(40, ge=1, description="epochs of the schedule halving at one rate")
    floor: float = Field(0.0, ge=0, le=1, description="part of the rate left when a cosine ends")
    warmup_epochs: float = Field(
        0.0, ge=0, description="epochs of linear warm-up, at most a quarter of all"
    )
    clip: float | None = Field(None, gt=0, description="largest gradient norm; none never clips")
