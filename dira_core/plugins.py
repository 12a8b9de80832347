"""Discover, list and explain what is installed, and validate what a recipe chooses of it."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, cast

import pluggy
from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from dira_core.components import Choice, Command, Component, Kind, Preset
from dira_core.errors import DiraError, PluginError, RecipeError, did_you_mean
from dira_core.loading import Blame, Loading, Offer, Problem, said

BUILTINS = "dira_core"
"""What the engine's own components are listed under."""


CHOICE_OF = "x-dira-choice-of"
"""Stands in pydantic's JSON schema for one component of a kind."""


class Provider(NamedTuple):
    """Who offers a component: the plugin's name, and its distribution's name and version."""

    plugin: str
    distribution: str


@dataclass(frozen=True)
class Plugins:
    """What is installed.

    Attributes:
        hook: Calls the observing hooks of every plugin, for example `hook.dira_epoch_ended(...)`.
        offers: Everything on offer, by kind and name.
        problems: What is wrong with plugins, warnings included.
    """

    hook: pluggy.HookRelay
    offers: Mapping[tuple[str, str], Offer]
    problems: tuple[Problem, ...]

    def names(self, kind: str) -> list[str]:
        """Return the names of one kind ("preset" and "command" are kinds too), sorted."""
        return sorted(name for of, name in self.offers if of == kind)

    def find(self, kind: Kind, name: str) -> Component:
        """Return a component.

        Raises:
            PluginError: A plugin that offers it is broken; the message shows the cause.
            RecipeError: Nothing is called that; the message lists what is installed.
        """
        return cast(Component, self._find(kind, name).item)

    def preset(self, name: str) -> Preset:
        """Return a preset; raises as `find` does."""
        return cast(Preset, self._find("preset", name).item)

    def components(self, kind: Kind) -> list[Component]:
        """Return every component of one kind, by name."""
        return [self.find(kind, name) for name in self.names(kind)]

    def presets(self) -> list[Preset]:
        """Return every preset, by name."""
        return [self.preset(name) for name in self.names("preset")]

    def commands(self) -> list[Command]:
        """Return every verb plugins add to the command line, by name."""
        return [cast(Command, self._find("command", n).item) for n in self.names("command")]

    def provider(self, kind: str, name: str) -> Provider:
        """Return who offers a component; raises as `find` does."""
        offer = self._find(kind, name)
        return Provider(offer.plugin, offer.distribution)

    def missing(self, name: str, kind: str = "") -> DiraError:
        """Return the error for a name that is not on offer, of one kind or of any."""
        broken = [problem for problem in self.problems if not problem.warning]
        for problem in broken:
            it_is = problem.component == name and kind in ("", problem.kind)
            its_plugins = problem.plugin == name and (not kind or problem.kind in ("", kind))
            if it_is or its_plugins:
                error = PluginError(f"{kind or 'component'} {name!r} is not available: {problem}")
                error.__cause__ = problem.cause
                return error
        known = self.names(kind) if kind else sorted({name for _, name in self.offers})
        listing = f"installed: {', '.join(known) or 'none'}"
        if broken:
            listing += "; a broken plugin may offer it, see `dira plugins`"
        what, hint = kind or "component", did_you_mean(name, known)
        return RecipeError(f"no {what} is called {short(name)} ({listing}){hint}")

    def _find(self, kind: str, name: str) -> Offer:
        if (kind, name) not in self.offers:
            raise self.missing(name, kind)
        return self.offers[kind, name]


@functools.cache
def installed() -> Plugins:
    """Load, once, the engine's own components and the entry points of group `dira`."""
    return load(entry_points(group="dira"), os.environ.get("DIRA_PLUGINS"))


def make(kind: Kind, choice: Choice, *parts: Any, wanted: type = object) -> Any:
    """Build a chosen component.

    Args:
        kind: Of the component.
        choice: Its name and options.
        parts: What else `build` is called with.
        wanted: Class of what must come out.

    Raises:
        PluginError: Its plugin raised, or built something else; the message names the component.
    """
    component = installed().find(kind, choice.name)
    try:
        built = component.build(choice.options, *parts)
    except DiraError:
        raise
    except Exception as error:
        raise PluginError(
            f"{kind} {choice.name!r} cannot be built ({said(error)}): "
            f"see `dira plugins show {choice.name}`, or report it to its plugin's authors"
        ) from error
    if not isinstance(built, wanted):
        raise PluginError(
            f"{kind} {choice.name!r} was built as {built!r:.60}, which is no {wanted.__name__}: "
            "report it to its plugin's authors"
        )
    return built


def load(entries: Iterable[EntryPoint], only: str | None = None) -> Plugins:
    """Load the engine's own components and plugins, in the order of their names.

    Args:
        entries: Entry points of the plugins.
        only: Names of the entry points to load, with commas between them; None loads every one.
            Where two distributions use the same name, each answers to "distribution:name".
    """
    from dira_core import __version__, builtins

    loading = Loading()
    ours = Blame(BUILTINS, f"dira-ssl {__version__}", loading.problems)
    loading.module(builtins, ours)
    named = _named(entries)
    wanted = set(named) if only is None else {n.strip() for n in only.split(",") if n.strip()}
    for unknown in sorted(wanted - set(named)):
        reason = f"is named by DIRA_PLUGINS and not installed{did_you_mean(unknown, named)}"
        loading.problems.append(Problem(unknown, "", reason, "correct DIRA_PLUGINS"))
    for plugin in sorted(wanted & set(named)):
        loading.entry_point(plugin, *named[plugin])
    offers = _without_duplicates(loading.offers, loading.problems, sorted(wanted & set(named)))
    return Plugins(loading.manager.hook, offers, tuple(loading.problems))


def _named(entries: Iterable[EntryPoint]) -> dict[str, tuple[str, EntryPoint]]:
    """Give each entry point a name of its own, with its distribution and version."""
    entries = list(entries)
    taken = Counter(entry.name for entry in entries)
    named = {}
    for entry in entries:
        name, version = (entry.dist.name, entry.dist.version) if entry.dist else ("", "")
        alone = taken[entry.name] == 1
        named[entry.name if alone else f"{name}:{entry.name}"] = (
            f"{name} {version}".strip(),
            entry,
        )
    return named


def _without_duplicates(
    offers: list[Offer], problems: list[Problem], loaded: list[str]
) -> dict[tuple[str, str], Offer]:
    """Withdraw each name that is offered twice: choosing for the user would hide one of them."""
    claims: dict[tuple[str, str], list[Offer]] = {}
    for offer in offers:
        claims.setdefault((offer.kind, offer.item.name), []).append(offer)
    for (kind, name), rivals in claims.items():
        if len(rivals) == 1:
            continue
        who = list(dict.fromkeys(f"{o.plugin!r} ({o.distribution})" for o in rivals))
        keep = [p for p in loaded if p == rivals[0].plugin or p not in {o.plugin for o in rivals}]
        way_out = f"load one of them, for example with DIRA_PLUGINS={','.join(keep)}"
        for plugin, distribution in dict.fromkeys((o.plugin, o.distribution) for o in rivals):
            reason = f"offers a {kind} {name!r} that is offered twice, by {' and '.join(who)}"
            blame = Blame(plugin, distribution, problems)
            blame(reason, way_out if len(who) > 1 else "", kind=kind, component=name)
    return {key: rivals[0] for key, rivals in claims.items() if len(rivals) == 1}


def short(value: object) -> str:
    """Return what a value looks like in Python, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class Chosen:
    """Let a pydantic field hold a `Choice` of one kind.

    It accepts a `Choice`, a name, or a mapping of `name` and options, and is written flat:
    `{"name": "simsiam", "dim": 2048}`.

    Args:
        kind: Kind of the component.
        optional: Whether "none" (or None) leaves the component out.
    """

    kind: Kind
    optional: bool = False

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Validate with the component's own options model; its problems keep their key paths."""
        return core_schema.no_info_plain_validator_function(
            self._choice,
            serialization=core_schema.plain_serializer_function_ser_schema(flat, info_arg=True),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Name the kind; distortions hold distortions, so `json_schema` fills in the components."""
        reference = {CHOICE_OF: self.kind}
        return {"anyOf": [reference, {"type": "null"}]} if self.optional else reference

    def _choice(self, value: object) -> Choice | None:
        if self.optional and value in (None, "none", {"name": "none"}):
            return None
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Choice):
            value = {"name": value.name, **dict(value.options)}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            message = f"give the name of a {self.kind}, or a table with its name and options"
            raise PydanticCustomError("choice", "{message}", {"message": message})
        try:
            component = installed().find(self.kind, value["name"])
        except DiraError as error:
            context = {"message": str(error), "error": error}
            raise PydanticCustomError("component", "{message}", context) from error
        # what a nested options model raises is a ValidationError: pydantic adds the path to it
        options = {key: option for key, option in value.items() if key != "name"}
        return Choice(component.name, component.options.model_validate(options))


def flat(choice: Choice | None, info: core_schema.SerializationInfo) -> dict[str, Any] | None:
    """Write a choice as one table, its name first."""
    if choice is None:
        return None
    return {"name": choice.name, **choice.options.model_dump(mode=info.mode)}


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a model, with the options of every installed component."""
    kinds: list[Kind] = []
    schema: dict[str, Any] = _linked(model.model_json_schema(), kinds)
    definitions = schema.setdefault("$defs", {})
    for kind in kinds:  # grows: options may hold choices of other kinds
        components = installed().components(kind)
        tables = [
            _component_schema(kind, component, definitions, kinds) for component in components
        ]
        definitions[kind] = {"oneOf": [{"enum": [c.name for c in components]}, *tables]}
    return schema


def _component_schema(
    kind: Kind, component: Component, definitions: dict[str, Any], kinds: list[Kind]
) -> dict[str, Any]:
    prefix = f"{kind}-{component.name}-"
    own = component.options.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
    own = _linked(own, kinds)
    for name, definition in own.pop("$defs", {}).items():
        definitions[f"{prefix}{name}"] = definition
    properties = {"name": {"const": component.name}, **own.get("properties", {})}
    required = ["name", *own.get("required", [])]
    return {**own, "description": component.summary, "properties": properties, "required": required}


def _linked(node: Any, kinds: list[Kind]) -> Any:
    """Turn marks of kinds into references, note the kinds, and let "none" stand for null."""
    if isinstance(node, list):
        return [_linked(each, kinds) for each in node]
    if not isinstance(node, dict):
        return node
    if CHOICE_OF in node:
        if node[CHOICE_OF] not in kinds:
            kinds.append(node[CHOICE_OF])
        rest = {key: value for key, value in node.items() if key != CHOICE_OF}
        return {"$ref": f"#/$defs/{node[CHOICE_OF]}", **rest}
    linked = {key: _linked(value, kinds) for key, value in node.items()}
    if {"type": "null"} in linked.get("anyOf", ()):
        linked["anyOf"] = [*linked["anyOf"], {"const": "none"}]
    return linked
