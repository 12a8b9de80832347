"""`dira plugins`: what is installed, what each component takes, and whether it keeps its word."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, cast

import typer
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from dira_core import toml
from dira_core.components import Component, Kind, Preset
from dira_core.errors import PluginError, RecipeError
from dira_core.layering import assignment, merge
from dira_core.loading import OFFERS, Problem
from dira_core.plugins import Plugins, installed

app = typer.Typer(help="What is installed: list, show, check.", invoke_without_command=True)

_Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]

_KINDS = [kind for kind, _ in OFFERS.values()]

_WHERE = {
    "source": ("data",),
    "distortion": ("views", "distort"),
    "tracker": ("log", "trackers"),
}
"""Where a recipe holds a component of a kind, if not under the kind's own name."""


def _complete(typed: str) -> list[str]:
    return [name for kind in _KINDS for name in installed().names(kind) if name.startswith(typed)]


_Name = Annotated[str, typer.Argument(help="Name of a component.", autocompletion=_complete)]


@app.callback()
def listing(context: typer.Context, as_json: _Json = False) -> None:
    """List what is installed, who offers it, and what is wrong with plugins."""
    if context.invoked_subcommand is not None:
        return
    rows, problems = list(_rows(installed())), installed().problems
    if as_json:
        document = {"components": rows, "problems": [_problem(p) for p in problems]}
        typer.echo(json.dumps(document, indent=2))
        return
    for line in _table([["kind", "name", "provider", "dims", "summary"], *map(_cells, rows)]):
        typer.echo(line)
    if problems:
        typer.echo("\nproblems")
    for problem in problems:
        typer.echo(f"  {'warning' if problem.warning else 'error'}: {problem}")


@app.command()
def show(name: _Name) -> None:
    """Show what a component takes, and how a recipe says it."""
    typer.echo("\n\n".join("\n".join(_described(kind, name)) for kind in _kinds_of(name)))


@app.command()
def check(
    name: _Name,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, an option; can be repeated")
    ] = None,
) -> None:
    """Check that a component keeps its contract: options, building, a tiny batch."""
    from dira_core.testing import check as checks

    options = merge(map(assignment, assignments or []), ()).values

    kinds = [kind for kind in _kinds_of(name) if kind not in ("preset", "command")]
    if not kinds:
        raise RecipeError(
            f"only components have a contract to check, {name!r} is none (`dira config --preset "
            "NAME` checks a preset)"
        )
    failed = 0
    for kind in kinds:
        for what, wrong in checks(cast(Kind, kind), name, **options):
            failed += wrong is not None
            passed = "" if what.startswith("not checked") else ": ok"
            typer.echo(f"{kind} {name}: {what}{passed if wrong is None else f': FAILED, {wrong}'}")
    if failed:
        raise PluginError(f"{name!r} breaks its contract in {failed} checks: see above")


def _kinds_of(name: str) -> list[str]:
    """Return the kinds that have something of this name; raises as `Plugins.find` does."""
    kinds = [kind for kind in _KINDS if name in installed().names(kind)]
    if not kinds:
        raise installed().missing(name)
    return kinds


def _rows(plugins: Plugins) -> Iterator[dict[str, Any]]:
    for kind in _KINDS:
        for name in plugins.names(kind):
            offer = plugins.offers[kind, name]
            item = offer.item
            yield {
                "kind": kind,
                "name": name,
                "plugin": offer.plugin,
                "distribution": offer.distribution,
                "dims": list(item.dims) if isinstance(item, Component) else [],
                "summary": item.summary,
            }


def _cells(row: dict[str, Any]) -> list[str]:
    dims = ",".join(map(str, row["dims"])) or "-"
    provider = f"{row['plugin']} ({row['distribution']})"
    return [row["kind"], row["name"], provider, dims, row["summary"]]


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _problem(problem: Problem) -> dict[str, Any]:
    names = ("plugin", "distribution", "reason", "way_out", "warning", "kind", "component")
    return {name: getattr(problem, name) for name in names}


def _described(kind: str, name: str) -> Iterator[str]:
    item, provider = installed().offers[kind, name].item, installed().provider(kind, name)
    yield f"{kind} {name}: {item.summary}"
    yield f"offered by {provider.plugin} ({provider.distribution})"
    if isinstance(item, Preset):
        yield f"\n{toml.write(to_jsonable_python(item.recipe)).rstrip()}"
    if isinstance(item, Component):
        yield f"works on {' and '.join(f'{dim}-D' for dim in item.dims)} images"
        if item.paper:
            yield f"paper: {item.paper}"
        yield "\noptions" if item.options.model_fields else "\nno options"
        defaults = _defaults(item)
        for key, field in item.options.model_fields.items():
            yield from _option(key, field, defaults)
        if item.defaults:
            yield f"\nbrings along\n{_indented(toml.write(to_jsonable_python(item.defaults)))}"
        if kind == "export":
            yield f"\nuse\n  dira export RUN --to {name}"
        else:
            yield f"\nin a recipe\n{_indented(_snippet(kind, item))}"


def _option(key: str, field: FieldInfo, defaults: Mapping[str, Any]) -> Iterator[str]:
    default = f"default {toml.value(defaults[key])}" if key in defaults else "required"
    annotation = field.annotation
    type_ = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    rules = [repr(rule) for rule in field.metadata]
    yield f"  {key}: {', '.join([type_.replace('typing.', ''), *rules, default])}"
    if field.description:
        yield f"      {field.description}"


def _defaults(component: Component) -> dict[str, Any]:
    """Return the options that have a default, as a recipe writes them."""
    options = component.options.model_construct()
    return options.model_dump(mode="json", include=options.model_fields_set | set(vars(options)))


def _snippet(kind: str, component: Component) -> str:
    """Return TOML that chooses a component with its defaults; "..." is for the user to fill in."""
    required = dict.fromkeys(component.options.model_fields, "...")
    chosen = {"name": component.name, **required, **_defaults(component)}
    *tables, last = _WHERE.get(kind, (kind,))
    recipe: dict[str, Any] = {last: [chosen] if tables else chosen}
    for table in reversed(tables):
        recipe = {table: recipe}
    return toml.write(recipe)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.rstrip().splitlines())
