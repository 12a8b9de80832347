"""One run as data: a frozen model, validated as a whole, that knows every installed component."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from dira_core import toml
from dira_core.components import Choice, Kind, Options
from dira_core.layering import Layer, Merged, merge
from dira_core.plugins import Chosen, installed, json_schema
from dira_core.problems import KeyPath, explain, listed, origin

DiscriminatorChoice = Annotated[Choice | None, Chosen("discriminator", optional=True)]
RestorerChoice = Annotated[Choice | None, Chosen("restorer", optional=True)]
AdversaryChoice = Annotated[Choice | None, Chosen("adversary", optional=True)]
DistortionChoice = Annotated[Choice, Chosen("distortion")]
BackboneChoice = Annotated[Choice, Chosen("backbone")]
SourceChoice = Annotated[Choice, Chosen("source")]
TrackerChoice = Annotated[Choice, Chosen("tracker")]

SMALLEST_SIDE = 8
"""Of a crop, in px."""


class Loader(Options):
    """How images are read."""

    workers: int = Field(
        0, ge=0, description="processes that decode and crop; 0 reads in the trainer"
    )
    cache_mb: int = Field(
        2048, ge=0, description="memory for decoded images, in MiB, over all workers"
    )
    max_unreadable: float = Field(
        0.05,
        ge=0,
        le=1,
        description="part of the images that may be unreadable before the run stops",
    )


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError("bounds must be above 0, the lower one first")
    return bounds


def _part_of_the_image(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[1] > 1:
        raise ValueError("a crop cannot cover more than 1 of the image")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_ordered)]
Part = Annotated[Bounds, AfterValidator(_part_of_the_image)]


class Override(Options):
    """What is different in some views; none leaves a key as it is in `views`."""

    repeat: int = Field(1, ge=1, description="how many consecutive views this is about")
    side: float = Field(1.0, gt=0, le=1, description="side of a crop, as a part of views.size")
    scale: Part | None = Field(None, description="part of the image's area a crop covers")
    ratio: Bounds | None = Field(None, description="width over height of a crop")
    geometry: list[DistortionChoice] | None = Field(None, description="instead of views.geometry")
    appearance: list[DistortionChoice] | None = Field(
        None, description="instead of views.appearance"
    )
    distort: list[DistortionChoice] | None = Field(None, description="instead of views.distort")


class Views(Options):
    """Crop -> view: what the networks see, and what must be restored."""

    size: int = Field(224, ge=SMALLEST_SIDE, description="side of a crop in px (each axis)")
    channels: int = Field(1, ge=1, description="channels of an image; grey images are 1")
    scale: Part = Field((0.2, 1.0), description="part of the image's area a crop covers")
    ratio: Bounds = Field((0.75, 4 / 3), description="width over height of a crop")
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

    each: list[Override] = Field(
        default=[], description="what differs from view to view, the first view first"
    )

    def of(self, view: int) -> Views:
        """Return how view number `view` is made: these values under its overrides."""
        for override in self.each:
            if view < override.repeat:
                chosen = override.model_dump(exclude={"repeat", "side"}, exclude_none=True)
                changes = {key: getattr(override, key) for key in chosen}
                side = max(SMALLEST_SIDE, round(self.size * override.side))
                return self.model_copy(update={**changes, "size": side})
            view -= override.repeat
        return self


class Weights(Options):
    """Weights of equation 4."""

    dis: float = Field(1.0, ge=0, description="weight of L_dis")
    res: float = Field(10.0, ge=0, description="weight of L_res")
    adv: float = Field(0.001, ge=0, description="weight of L_adv")
    ramps: dict[Literal["dis", "res", "adv"], tuple[float, float]] = Field(
        default={}, description="epochs between which a weight grows from 0, for example adv"
    )

    def at(self, epoch: float) -> dict[str, float]:
        """Return the three weights at a point of time, in epochs from the start."""
        weights = {"dis": self.dis, "res": self.res, "adv": self.adv}
        for name, (first, last) in self.ramps.items():
            done = (epoch - first) / (last - first) if last > first else float(epoch >= first)
            weights[name] *= min(1.0, max(0.0, done))
        return weights


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
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd and lars")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of adam and adamw")
    trust: float = Field(1e-3, gt=0, description="of lars: size of an update over its weight's")
    weight_decay: float = Field(
        1e-4, ge=0, description="on every parameter, as the public code does; see decay_1d"
    )
    decay_1d: bool = Field(
        True, description="whether norms and biases decay too; with lars they never do"
    )
    scale_1d: float = Field(1.0, gt=0, description="factor on the rate of norms and biases")
    schedule: Literal["cosine", "epoch-cosine", "constant"] = Field(
        "cosine", description="of the learning rate; epoch-cosine moves once an epoch"
    )
    floor: float = Field(0.0, ge=0, le=1, description="part of the rate left when a cosine ends")
    warmup_epochs: float = Field(
        0.0, ge=0, description="epochs of linear warm-up, at most a quarter of all"
    )
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


FIXED_IN_STAGES = ("data", "backbone", "seed", "init", "stages")
"""Keys of a recipe that no stage may change."""


class Stage(Options):
    """One stage of a run: its recipe with changes, from the weights of the stage before."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="what to call it")
    inherit: list[Literal["discriminator", "adversary"]] = Field(
        default=["discriminator"],
        description="roles that keep their weights, as backbone and decoder always do; optimizers "
        "start anew",
    )
    changes: dict[str, JsonValue] = Field(
        default={}, description="what is different: anything but data, backbone, seed and init"
    )


class Recipe(Settings):
    """One run: everything that decides its outcome, and nothing else."""

    data: SourceChoice = Field(description="where images come from")
    backbone: BackboneChoice = Field(description="the encoder that is pretrained")
    init: str | None = Field(
        None,
        description="weights that backbone and restorer start from: imagenet, a run folder, or a "
        "file of weights; none draws them from the seed",
    )
    discriminator: DiscriminatorChoice = Field(None, description="L_dis; none leaves it out")
    restorer: RestorerChoice = Field(None, description="L_res; none leaves it out")
    adversary: AdversaryChoice = Field(None, description="L_adv; none leaves it out")
    stages: list[Stage] = Field(
        default=[], description="parts of the run, one after the other; none is one stage"
    )

    @model_validator(mode="after")
    def _roles_fit(self) -> Self:
        dis = self.discriminator is not None and self.weights.dis > 0
        res = self.restorer is not None and self.weights.res > 0
        broken = []
        if not (dis or res):
            rule = "nothing to train: choose a discriminator or a restorer, with a weight above 0"
            broken.append(_broken(("discriminator",), rule))
        if self.adversary is not None and self.restorer is None:
            rule = "an adversary judges restored images: choose a restorer, or none as adversary"
            broken.append(_broken(("adversary",), rule))
        if broken:
            raise ValidationError.from_exception_data("Recipe", broken)
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        broken: list[InitErrorDetails] = []
        for number, stage in enumerate(self.stages):
            fixed = [key for key in FIXED_IN_STAGES if key in stage.changes]
            rules = [f"{key} is the same in all stages" for key in fixed]
            values = self._stage_values(number)
            try:
                Recipe.model_validate(values)
            except ValidationError as error:
                rules += str(explain(error, Recipe, values, {})).splitlines()
            broken += [_broken(("stages", number, "changes"), rule) for rule in rules]
        if len({stage.name for stage in self.stages}) < len(self.stages):
            broken.append(_broken(("stages",), "two stages have one name"))
        if broken:
            raise ValidationError.from_exception_data("Recipe", broken)
        return self

    def at_stage(self, number: int) -> Recipe:
        """Return the recipe of one stage, counted from 0."""
        return Recipe.model_validate(self._stage_values(number))

    def _stage_values(self, number: int) -> Mapping[str, Any]:
        left_out = {"stages"} if number == 0 else {"stages", "init"}
        whole = self.model_dump(mode="json", exclude=left_out)
        return merge([Layer("", whole), Layer("", self.stages[number].changes)], _KINDS).values


def _broken(place: tuple[str | int, ...], rule: str) -> InitErrorDetails:
    error = PydanticCustomError("rule", "{rule}", {"rule": rule})
    return InitErrorDetails(type=error, loc=place, input=place[-1])


_KINDS: Mapping[str, Kind] = {
    key: mark.kind
    for key, field in Recipe.model_fields.items()
    for mark in field.metadata
    if isinstance(mark, Chosen)
}
"""Top-level keys that hold a choice, and of what kind."""

_LISTS: Mapping[tuple[str, str], Kind] = {
    ("views", "geometry"): "distortion",
    ("views", "appearance"): "distortion",
    ("views", "distort"): "distortion",
    ("log", "trackers"): "tracker",
}
"""Tables and keys that hold a list of choices, and of what kind."""


@dataclass(frozen=True)
class Resolved:
    """A recipe, and the origin of each value that is not a default."""

    recipe: Recipe
    why: Mapping[KeyPath, str]

    def explained(self) -> Iterator[tuple[str, Any, str]]:
        """Yield the key path, value and origin of everything in the recipe."""
        yield from self._explained((), self.recipe.model_dump(mode="json"))

    def _explained(self, path: KeyPath, value: Any) -> Iterator[tuple[str, Any, str]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from self._explained((*path, key), inner)
        else:
            yield ".".join(path), value, origin(path, self.why) or "default"


def resolve(layers: Sequence[Layer]) -> Resolved:
    """Merge layers over the defaults of the components they choose, and validate the whole.

    Args:
        layers: Lowest first, as `gather` returns them.

    Raises:
        RecipeError: One error that lists every problem, each on its own line.
        PluginError: All that is wrong is that chosen components belong to broken plugins.
    """
    merged = _over_component_defaults(layers)
    problems = [*merged.problems, *_overruled(merged)]
    if problems:
        raise listed(problems)
    try:
        return Resolved(Recipe.model_validate(merged.values), merged.why)
    except ValidationError as error:
        raise explain(error, Recipe, merged.values, merged.why) from error


def _over_component_defaults(layers: Sequence[Layer]) -> Merged:
    """Merge what the components finally chosen bring along, and the layers over it."""
    brought: dict[tuple[Kind, str], Layer] = {}
    while True:
        # where two bring the same key, the discriminator's paper decides
        below = sorted(brought.items(), key=lambda item: item[0][0] == "discriminator")
        merged = merge([*(layer for _, layer in below), *layers], _KINDS)
        new = [chosen for chosen in _chosen(merged.values) if chosen not in brought]
        if not new:
            return merged
        for kind, name in new:
            defaults = installed().find(kind, name).defaults
            brought[kind, name] = Layer(f"defaults of {kind} {name!r}", defaults)


def _overruled(merged: Merged) -> Iterator[str]:
    """Say which flags would do nothing in a stage that changes the same key."""
    stages = merged.values.get("stages")
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        changes = stage.get("changes") if isinstance(stage, Mapping) else None
        for path in _leaves(changes) if isinstance(changes, Mapping) else ():
            place = ("stages", str(number), "changes", *path)
            flag = origin(path, merged.why)
            if flag.startswith("-") and not origin(place, merged.why).startswith("-"):
                key = ".".join(path)
                yield f"{flag}: stage {number} has a {key} of its own: --set {'.'.join(place)}=..."


def _leaves(table: Mapping[str, Any], above: KeyPath = ()) -> Iterator[KeyPath]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key)


def _chosen(values: Mapping[str, Any]) -> Iterator[tuple[Kind, str]]:
    """Yield the installed components that merged values choose, not those within their options."""
    choices = [(kind, values.get(key)) for key, kind in _KINDS.items()]
    for (table, key), kind in _LISTS.items():
        entries = values[table].get(key) if isinstance(values.get(table), Mapping) else None
        choices += [(kind, entry) for entry in entries] if isinstance(entries, list) else []
    for kind, choice in choices:
        name = choice.get("name") if isinstance(choice, Mapping) else choice
        if isinstance(name, str) and name in installed().names(kind):
            yield kind, name


def to_toml(recipe: Settings) -> str:
    """Write a recipe so that `dira run --recipe` repeats it: every value is there, defaults too."""
    return toml.write(recipe.model_dump(mode="json"))


def digest(recipe: Recipe) -> str:
    """Return the SHA-256 of a recipe's values, in hexadecimal."""
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file; every key may be left to the layers below."""
    schema = json_schema(Recipe)
    del schema["required"]
    return schema
