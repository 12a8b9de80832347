"""Write docs/cli.md, docs/recipe.md and docs/api.md from the program itself.

Run `python docs/reference.py` after a change of a flag, a key or a public name; a test compares.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from textwrap import indent
from typing import Any, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python
from typer.testing import CliRunner

import dira_core
from dira_core import toml
from dira_core.cli import command_line
from dira_core.components import Component, Options
from dira_core.errors import DiraError
from dira_core.loading import OFFERS
from dira_core.plugins import CHOICE_OF, installed
from dira_core.recipe import Recipe

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by docs/reference.py: change the program, not this page. -->"
OURS = "dira-ssl "
WIDTH = 100
TYPES = {"number": "number", "integer": "whole number", "string": "text", "null": "none"}
TYPES |= {"boolean": "true or false"}
BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}

CALLED = ("__call__", "__getitem__", "__len__")
"""Methods that a reader uses by an operator."""

ALIASES = {
    "Change": "What is done to one image: `Callable[[np.ndarray], np.ndarray]`.",
    "DistortionChoice": "Type of an option that holds a distortion: `list[DistortionChoice]`.",
    "Pyramid": "Maps of a backbone, shallow to deep: `Sequence[Tensor]`.",
    "hookimpl": "Mark a function as the implementation of the hook of its name.",
}
"""Public names that are no class and no function with a docstring of its own."""


def table(*rows: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of a table, the header first."""
    for number, row in enumerate(rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        if number == 0:
            yield f"|{' --- |' * len(row)}"


def cli() -> str:
    """Return the page of every command and flag: what `--help` says."""
    app = command_line()
    lines = [
        "# Command line",
        NOTE,
        "What `--help` says of every command. Shell completion: `dira --install-completion`.",
    ]
    for words in commands(app):
        said = CliRunner().invoke(app, [*words, "--help"], prog_name="dira", terminal_width=WIDTH)
        assert said.exit_code == 0, said.output
        lines += [f"## `{' '.join(['dira', *words])}`", f"```text\n{said.output.strip()}\n```"]
    rows = [(str(e.exit_code), f"`{e.__name__}`", _first_line(e)) for e in _errors()]
    lines += [
        "## Exit codes",
        "0 is success and 1 a bug of ours. 75: stopped by a signal, and saved "
        "(see [reliability](reliability.md)).",
        "\n".join(table(("code", "error", "what it says"), *sorted(rows))),
    ]
    return _page(lines)


def commands(app: typer.Typer) -> list[list[str]]:
    """Return the words of every command, `dira` itself (no words) first."""
    found: list[list[str]] = []
    left: list[tuple[list[str], Any]] = [([], typer.main.get_command(app))]
    while left:
        words, command = left.pop(0)
        found.append(words)
        inner: dict[str, Any] = getattr(command, "commands", {})
        left += [([*words, name], sub) for name, sub in inner.items()]
    return sorted(found)


def _errors() -> list[type[DiraError]]:
    near = [DiraError, *DiraError.__subclasses__()]
    return [*near, *(error for each in near[1:] for error in each.__subclasses__())]


def recipe() -> str:
    """Return the page of every key of a recipe, and of every component's options."""
    lines = [
        "# Recipe",
        NOTE,
        "Every key, its type, its default and what it means. `dira config` prints the recipe "
        "that flags would run, `--why` where each value comes from, `--schema` the JSON schema. "
        "A default here is that of the key itself; presets and components go over it (see "
        '[concepts](concepts.md#recipe)). `"none"` stands for a value that is absent.',
    ]
    lines += _keys("", Recipe)
    lines += ["## Options of the components", "`name` chooses the component."]
    for kind, _ in OFFERS.values():
        if kind not in ("export", "preset", "command"):  # those are in no recipe
            lines += _components(kind)
    return _page(lines)


def _keys(above: str, model: type[BaseModel]) -> Iterator[str]:
    rows = _rows(above, model)
    if rows:
        yield "\n".join(table(("key", "type", "default", "what"), *rows))
    for name, field in model.model_fields.items():
        for inner in _tables(field):
            key = f"[{above}{name}]"
            yield f"## `{key if _is_table(field) else f'[{key}]'}`"
            about = f" This one: {field.description}." if field.description else ""
            yield f"{_first_line(inner)}{about}"
            yield from _keys(f"{above}{name}.", inner)


def _rows(above: str, model: type[BaseModel]) -> list[tuple[str, ...]]:
    """Return key, type, default and description of the fields that hold no table."""
    schema = model.model_json_schema()["properties"]
    return [
        (f"`{above}{name}`", words(schema[name]), _value(field), field.description or "")
        for name, field in model.model_fields.items()
        if not _is_table(field)
    ]


def _is_table(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Options)


def _tables(field: FieldInfo) -> list[type[Options]]:
    """Return the model of a table, or of the tables in a list, if a field holds such."""
    members = [field.annotation, *get_args(field.annotation)]
    return [each for each in members if isinstance(each, type) and issubclass(each, Options)]


def words(schema: dict[str, Any]) -> str:
    """Say in words what a piece of JSON schema allows."""
    if CHOICE_OF in schema:
        return f"{schema[CHOICE_OF]}"
    if "$ref" in schema:
        return "value" if schema["$ref"].endswith("/JsonValue") else "table"
    if members := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(words(each) for each in members)
    if "enum" in schema:
        return ", ".join(map(json.dumps, schema["enum"]))
    if "prefixItems" in schema:
        return f"[{', '.join(words(item) for item in schema['prefixItems'])}]"
    if schema["type"] == "array":
        return f"list of {words(schema['items'])}"
    if schema["type"] == "object":
        return f"table of {words(schema['additionalProperties'])}"
    bounds = [f"{word} {schema[key]}" for key, word in BOUNDS.items() if key in schema]
    within = f" ({', '.join(bounds)})" if bounds else ""
    return f"{TYPES[schema['type']]}{within}"


def _value(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return f"`{toml.value(to_jsonable_python(default))}`"


def _components(kind: str) -> Iterator[str]:
    for name in installed().names(kind):
        offer = installed().offers[kind, name]
        if not offer.distribution.startswith(OURS) or not isinstance(offer.item, Component):
            continue
        yield f"### {kind} `{name}`"
        yield f"{offer.item.summary[:1].upper()}{offer.item.summary[1:]}."
        rows = _rows("", offer.item.options)
        yield (
            "\n".join(table(("option", "type", "default", "what"), *rows))
            if rows
            else "No options."
        )


def api() -> str:
    """Return the page of every public name: what `help` says of it."""
    lines = [
        "# Python API",
        NOTE,
        "What `dira_core` itself exports. A plugin imports these and nothing below them; "
        "`dira_core.testing` has tiny parts and contract checks for its tests.",
    ]
    names = list(dira_core.__all__)
    rows = [(_linked(name), _kind(name), ALIASES.get(name) or _said(name)) for name in names]
    lines.append("\n".join(table(("name", "is", "what"), *rows)))
    for name in names:
        if name not in ALIASES:
            text = "\n".join(_helped(name, getattr(dira_core, name)))
            lines += [f"## `{name}`", f"```text\n{text}\n```"]
    return _page(lines)


def _helped(name: str, value: Any) -> Iterator[str]:
    """Yield signature and docstring of a class or function, and those of a class's methods."""
    yield f"{name}{_signature(value)}"
    yield from indent(inspect.getdoc(value) or "", "    ").splitlines()
    for method, held in vars(value).items() if isinstance(value, type) else ():
        if (method.startswith("_") and method not in CALLED) or not held.__doc__:
            continue
        if isinstance(held, property | cached_property):
            yield f"\n    {method}\n        {_first_line(held)}"
        elif callable(held) or isinstance(held, classmethod | staticmethod):
            inner = "\n".join(_helped(method, getattr(value, method)))
            yield f"\n{indent(inner, '    ')}"


def _signature(value: Any) -> str:
    """Return how something is called, as it is written; nothing where a recipe fills it in."""
    if isinstance(value, type) and (issubclass(value, BaseModel) or "__init__" not in vars(value)):
        return ""
    signature, parts = inspect.signature(value), list[str]()
    for each in signature.parameters.values():
        if each.kind is each.KEYWORD_ONLY and not any(p.startswith("*") for p in parts):
            parts.append("*")
        if each.annotation is not each.empty:
            each = each.replace(annotation=Written(each.annotation))
        if inspect.isfunction(each.default):
            each = each.replace(default=Written(each.default.__name__))
        if each.name != "self":
            parts.append(str(each))
    returned = "" if isinstance(value, type) else f" -> {signature.return_annotation}"
    line = f"({', '.join(parts)}){returned}"
    if len(line) <= WIDTH - 25:
        return line
    return "(\n    " + ",\n    ".join(parts) + f",\n){returned}"


class Written(str):
    """A part of a signature that is shown as it is written."""

    __repr__ = str.__str__


def _linked(name: str) -> str:
    return f"`{name}`" if name in ALIASES else f"[`{name}`](#{name.lower()})"


def _said(name: str) -> str:
    return _first_line(getattr(dira_core, name))


def _kind(name: str) -> str:
    value = getattr(dira_core, name)
    if name in ALIASES:
        return "alias" if name != "hookimpl" else "decorator"
    return "class" if isinstance(value, type) else "function"


def _first_line(value: Any) -> str:
    doc = inspect.getdoc(value)
    assert doc, f"{value} has no docstring"
    return doc.splitlines()[0]


def _page(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


PAGES = {"cli.md": cli, "recipe.md": recipe, "api.md": api}

if __name__ == "__main__":
    for file, write in PAGES.items():
        (FOLDER / file).write_text(write(), encoding="utf-8")
