"""One run as data: a frozen model, validated as a whole, that knows every installed component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from dira_core import toml
from dira_core.choices import (
    AdversaryChoice,
    BackboneChoice,
    DiscriminatorChoice,
    RestorerChoice,
    SourceChoice,
)
from dira_core.components import Kind, Options
from dira_core.layering import Layer, merge
from dira_core.plugins import Chosen, json_schema
from dira_core.problems import explain
from dira_core.settings import Settings

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
        default={},
        description="what is different: anything but data, backbone, seed, init and stages",
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
        return merge([Layer("", whole), Layer("", self.stages[number].changes)], KINDS).values


def _broken(place: tuple[str | int, ...], rule: str) -> InitErrorDetails:
    error = PydanticCustomError("rule", "{rule}", {"rule": rule})
    return InitErrorDetails(type=error, loc=place, input=place[-1])


KINDS: Mapping[str, Kind] = {
    key: mark.kind
    for key, field in Recipe.model_fields.items()
    for mark in field.metadata
    if isinstance(mark, Chosen)
}
"""Top-level keys that hold a choice, and of what kind."""


def to_toml(recipe: Settings) -> str:
    """Write a recipe so that `dira run --recipe` repeats it: every value is there, defaults too."""
    return toml.write(recipe.model_dump(mode="json"))


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file; every key may be left to the layers below."""
    schema = json_schema(Recipe)
    del schema["required"]
    return schema
