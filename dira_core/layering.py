"""What a recipe is made of: preset, file, assignments, flags, merged; each value has an origin."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dira_core import toml
from dira_core.components import Component
from dira_core.errors import DiraError, RecipeError
from dira_core.loading import said
from dira_core.plugins import installed
from dira_core.problems import KeyPath, listed

PRESET_WITHOUT_DATA = "tiny"
"""Taken where nothing says what the data are, if it is installed: it brings its own."""

PRESET_WITH_DATA = "fixed"
"""Taken where the data are given and no preset is, if it is installed."""

PRESETS_OF_SOURCES: Mapping[str, str] = {"phantom3d": "tiny3d"}
"""Taken instead where these data are given: made-up volumes are for a first look too."""

MODES: Mapping[str, Mapping[str, Any]] = {
    "di": {"restorer": "none", "adversary": "none", "stages": []},
    "dir": {"adversary": "none", "stages": []},
    "dira": {},
}
"""What is left of a trio: the Discriminator, with the Restorer, all three (paper, table 4)."""

_PRESET = "preset "


@dataclass(frozen=True)
class Layer:
    """A piece of a recipe and what to call it: a file, a flag, a preset."""

    origin: str
    values: Mapping[str, Any]

    @classmethod
    def at(cls, origin: str, path: Sequence[str], value: object) -> Layer:
        """Return a layer of one value at a key path."""
        for key in reversed(path):
            value = {key: value}
        return cls(origin, cast(Mapping[str, Any], value))


@dataclass
class Merged:
    """Layers put over each other, lowest first.

    Tables merge by key and lists are replaced, but for a table of positions over a list
    (`--set views.distort.0.p=0.5`). A table of several numbers (rates by batch) is one value and
    replaces what is below. A choice of another name drops the options below it.

    Attributes:
        choices: Top-level keys that hold a choice.
        values: The merged recipe.
        why: Origin of each value that is no table.
        problems: What could not be merged.
    """

    choices: Collection[str]
    values: dict[str, Any] = field(default_factory=dict)
    why: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, layer: Layer) -> None:
        """Put one layer over those before it."""
        for key, value in layer.values.items():
            self.values[key] = self._over(self.values.get(key), value, (key,), layer.origin)

    def _over(self, lower: Any, upper: Any, path: KeyPath, origin: str) -> Any:
        replaced = lower is not None
        if len(path) == 1 and path[0] in self.choices:
            lower, upper = (lower if lower is None else named(lower)), named(upper)
            if _renamed(lower, upper):
                lower = None
        if isinstance(lower, list) and isinstance(upper, Mapping) and _positions(upper):
            return self._into_list(lower, upper, path, origin)
        both = isinstance(lower, Mapping) and isinstance(upper, Mapping)
        if not both or (len(upper) > 1 and _positions(upper)):
            if replaced:
                self._forget(path)
            if not (isinstance(upper, Mapping) and upper):
                self.why[path] = origin
            lower = {}
        if not isinstance(upper, Mapping):
            return list(upper) if isinstance(upper, tuple) else upper
        table = dict(lower)
        for key, value in upper.items():
            key = str(key)  # a plugin may say 256 where a file says "256"
            table[key] = self._over(table.get(key), value, (*path, key), origin)
        return table

    def _into_list(
        self, lower: list[Any], upper: Mapping[str, Any], path: KeyPath, origin: str
    ) -> list[Any]:
        entries = list(lower)
        for key, value in upper.items():
            if int(key) < len(entries):
                entry = entries[int(key)]
                entry = named(entry) if isinstance(value, Mapping) else entry
                entries[int(key)] = self._over(entry, value, (*path, key), origin)
            else:
                have = f"it has {len(entries)}, counted from 0"
                self.problems.append(f"{'.'.join(path)}: no entry {key}, {have} ({origin})")
        return entries

    def _forget(self, path: KeyPath) -> None:
        for known in [known for known in self.why if known[: len(path)] == path]:
            del self.why[known]


def named(choice: Any) -> Any:
    """Write a choice that is a bare name, or none, as a table."""
    if choice is None or isinstance(choice, str):
        return {"name": "none" if choice is None else choice}
    return choice


def _positions(table: Mapping[str, Any]) -> bool:
    return bool(table) and all(str(key).isdecimal() for key in table)


def _renamed(lower: Any, upper: Any) -> bool:
    if not (isinstance(lower, Mapping) and isinstance(upper, Mapping)):
        return False
    return "name" in lower and "name" in upper and upper["name"] != lower["name"]


def merge(layers: Iterable[Layer], choices: Collection[str]) -> Merged:
    """Merge layers, lowest first."""
    merged = Merged(choices)
    for layer in layers:
        merged.put(layer)
    return merged


def gather(
    flags: Sequence[Layer] = (),
    *,
    preset: str | None = None,
    recipe: Path | None = None,
    assignments: Sequence[str] = (),
    data: str | None = None,
    mode: str | None = None,
) -> list[Layer]:
    """Return the layers a user asks for, lowest first.

    Preset, file, flags that choose components, assignments, other flags, mode.

    Args:
        flags: What named flags say.
        preset: Name of a preset; "none" takes none. By default `fixed`, or `tiny` where no layer
            says what the data are, or `tiny3d` for `phantom3d`; none, where it is not installed.
        recipe: TOML or JSON file.
        assignments: Texts such as "views.size=64".
        data: Name of a source, or what a source accepts (a folder, a file, a URL).
        mode: "di" (Discriminator alone), "dir" (with the Restorer) or "dira" (all three). The
            views are the same in all modes.

    Raises:
        RecipeError: Something is missing or cannot be read; every problem is listed.
        PluginError: The preset's or source's plugin is broken.
    """
    errors: list[DiraError] = []

    def attempt(make: Callable[[Any], Layer], wish: Any) -> list[Layer]:
        try:
            return [make(wish)]
        except DiraError as error:
            errors.append(error)
            return []

    above = attempt(file_layer, recipe) if recipe is not None else []
    # who is chosen comes first: `--disc x --set discriminator.dim=64` is about x
    above += attempt(data_layer, data) if data is not None else []
    above += [flag for flag in flags if _chooses(flag)]
    for text in assignments:
        above += attempt(assignment, text)
    above += [flag for flag in flags if not _chooses(flag)]
    above += attempt(mode_layer, mode) if mode is not None else []
    if preset is None:
        below = default_preset(above)
    else:
        below = attempt(preset_layer, preset) if preset != "none" else []
    if errors:
        raise errors[0] if len(errors) == 1 else listed([str(error) for error in errors])
    return [*below, *above]


def flag_layers(flags: Mapping[str, tuple[str, object]]) -> list[Layer]:
    """Return a layer for each flag with a value, from key path and value by flag."""
    return [
        Layer.at(flag, path.split("."), value)
        for flag, (path, value) in flags.items()
        if value is not None
    ]


def _chooses(flag: Layer) -> bool:
    """Say whether a flag names a component; `--init` names weights."""
    return any(isinstance(value, str) for key, value in flag.values.items() if key != "init")


def default_preset(layers: Iterable[Layer]) -> list[Layer]:
    """Return the preset `gather` takes by itself, or nothing; presets in `layers` do not count."""
    own = [layer.values for layer in layers if not layer.origin.startswith(_PRESET)]
    # data.n=64 alone says how many made-up images, not where others are
    chosen = [values["data"] for values in own if "data" in values]
    named = [data.get("name") if isinstance(data, Mapping) else data for data in chosen]
    given = [name for name in named if name is not None]
    name = PRESETS_OF_SOURCES.get(given[-1], PRESET_WITH_DATA) if given else PRESET_WITHOUT_DATA
    return [preset_layer(name)] if name in installed().names("preset") else []


def preset_layer(name: str) -> Layer:
    """Return a preset by name; raises as `Plugins.find` does."""
    return Layer(f"{_PRESET}{name!r}", installed().preset(name).recipe)


def mode_layer(name: str) -> Layer:
    """Return a mode of training by name.

    Raises:
        RecipeError: There is no such mode.
    """
    if name not in MODES:
        raise RecipeError(f"--mode is {', '.join(MODES)}, got {name!r:.60}")
    return Layer(f"--mode {name}", MODES[name])


def file_layer(path: Path) -> Layer:
    """Read a recipe file; raises as `toml.read` does."""
    return Layer(str(path), toml.read(path))


def assignment(text: str) -> Layer:
    """Read "a.b=c", where c is TOML if it can be, else text.

    Raises:
        RecipeError: It has no "=", or a key is empty, or the key path is too long, or what begins
            like a list or a table is none.
    """
    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys) or len(keys) > toml.MAX_DEPTH:
        raise RecipeError(f"--set takes key.key=value, got {text!r:.60}")
    try:
        return Layer.at(f"--set {path.strip()}", keys, toml.parse_value(value.strip()))
    except ValueError as error:
        raise RecipeError(f"--set {text:.60} {error}") from error


def data_layer(value: str) -> Layer:
    """Choose the source that reads a value of `--data`.

    The name of a source goes first, unless it is also that of a file or folder and the source needs
    a path: `--data cache` is then the folder `cache`.

    Raises:
        RecipeError: No source reads it, or several do.
        PluginError: It names a source of a broken plugin.
    """
    sources = installed().components("source")
    named = next((source for source in sources if source.name == value), None)
    if named is not None and not (_needs_path(named) and Path(value).exists()):
        return Layer("--data", {"data": {"name": value}})
    reading = [source.name for source in sources if _accepts(source, value)]
    if len(reading) == 1:
        return Layer("--data", {"data": {"name": reading[0], "path": value}})
    if reading:
        ways = " or ".join(f"--set data.name={name}" for name in reading)
        raise RecipeError(
            f"--data {value!r} is read by {' and '.join(reading)}: say {ways}, and --set "
            f"data.path={value}"
        )
    if Path(value).exists():
        known = ", ".join(source.name for source in sources)
        raise RecipeError(
            f"--data {value!r} is read by no source: give a folder, a .csv or a .tar file, or say "
            f"--set data.name=NAME --set data.path={value} (installed: {known})"
        )
    try:
        installed().find("source", value)
    except RecipeError as error:
        raise RecipeError(f"--data {value!r}: no such file or folder, and {error}") from error
    raise AssertionError(value)


def _needs_path(source: Component) -> bool:
    path = source.options.model_fields.get("path")
    return path is not None and path.is_required()


def _accepts(source: Component, value: str) -> bool:
    try:
        return source.accepts is not None and source.accepts(value)
    except Exception as error:
        warnings.warn(f"source {source.name!r} is left out: {said(error)}", stacklevel=2)
        return False
