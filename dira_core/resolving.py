"""Layers -> a recipe: the defaults of what they choose below them, and every origin kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dira_core import toml
from dira_core.components import Kind
from dira_core.layering import Layer, Merged, merge
from dira_core.plugins import installed
from dira_core.problems import KeyPath, explain, listed, origin
from dira_core.recipe import KINDS, Recipe

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
        for path, value in toml.leaves(self.recipe.model_dump(mode="json")):
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
        merged = merge([*(layer for _, layer in below), *layers], KINDS)
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
        leaves = toml.leaves(changes if isinstance(changes, Mapping) else {})
        for path in (path for path, value in leaves if value != {}):
            place = ("stages", str(number), "changes", *path)
            flag = origin(path, merged.why)
            if flag.startswith("-") and not origin(place, merged.why).startswith("-"):
                key = ".".join(path)
                yield f"{flag}: stage {number} has a {key} of its own: --set {'.'.join(place)}=..."


def _chosen(values: Mapping[str, Any]) -> Iterator[tuple[Kind, str]]:
    """Yield the installed components that merged values choose, not those within their options."""
    choices = [(kind, values.get(key)) for key, kind in KINDS.items()]
    for (table, key), kind in _LISTS.items():
        entries = values[table].get(key) if isinstance(values.get(table), Mapping) else None
        choices += [(kind, entry) for entry in entries] if isinstance(entries, list) else []
    for kind, choice in choices:
        name = choice.get("name") if isinstance(choice, Mapping) else choice
        if isinstance(name, str) and name in installed().names(kind):
            yield kind, name
