"""A component: a name, its options and how to build it. Importing one never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

API_LEVEL = 1
"""The contract this engine speaks. A plugin says which it was written for: `DIRA_API = 1`."""

OLDEST_API_LEVEL = 1
"""Plugins written for an older contract than this are refused, with the way out."""

Kind = Literal[
    "discriminator",
    "restorer",
    "adversary",
    "distortion",
    "backbone",
    "source",
    "target",
    "tracker",
    "export",
]


class Options(BaseModel):
    """Options of a component: typed, described, frozen; unknown keys and NaN are errors.

    A field's description is what `dira plugins show` and the JSON schema say about it. Where a
    field may be None, "none" says so: TOML has no word for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none_is_none(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        none = {
            key: None
            for key, field in cls.model_fields.items()
            if values.get(key) == "none" and type(None) in get_args(field.annotation)
        }
        return {**values, **none}


class DistortionOptions(Options):
    """Options every distortion has."""

    p: float = Field(1.0, ge=0, le=1, description="probability that an image is distorted at all")


@dataclass(frozen=True)
class Component:
    """One piece on offer: a Discriminator, a Distortion, a Source, ...

    Args:
        name: What a recipe calls it, unique among its kind: `[a-z0-9-]+`.
        options: Its options; the recipe's keys are validated against them.
        build: Makes it. What it is called with depends on the kind, see `dira_core.hookspecs`.
            The only place where a component may import torch.
        summary: One line for the tables.
        paper: Where it comes from, for example "arXiv:2011.10566".
        dims: Numbers of spatial axes it works on.
        defaults: A piece of a recipe that it brings along (for example the optimizer its paper
            trains with); anything a preset, a file or a flag says goes first.
        accepts: For sources: whether the value of `--data` (a path or a URL) is one it reads.
    """

    name: str
    options: type[Options]
    build: Callable[..., Any]
    summary: str
    paper: str = ""
    dims: tuple[int, ...] = (2, 3)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    accepts: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Preset:
    """A named piece of a recipe, below the recipe file and above the components' defaults."""

    name: str
    recipe: Mapping[str, Any]
    summary: str


@dataclass(frozen=True)
class Command:
    """A verb a plugin adds to the command line: a typer callback, or a `typer.Typer` of several."""

    name: str
    function: Callable[..., None]
    summary: str


@dataclass(frozen=True)
class Choice:
    """A component chosen by a recipe, with its validated options."""

    name: str
    options: Options
