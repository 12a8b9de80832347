"""Say in plain lines what is wrong with a recipe: where, the rule, what was found, the way out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dira_core.errors import DiraError, PluginError, RecipeError, did_you_mean
from dira_core.plugins import Chosen, installed, short

KeyPath = tuple[str, ...]

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,60}")

MOST_LISTED = 20
"""A hostile file could have a hundred thousand problems."""


def listed(problems: Sequence[str]) -> RecipeError:
    """Return one error that lists problems, each on its own line."""
    if len(problems) == 1:
        return RecipeError(problems[0])
    lines = list(problems[:MOST_LISTED])
    if len(problems) > MOST_LISTED:
        lines.append(f"and {len(problems) - MOST_LISTED} more")
    return RecipeError(f"the recipe has {len(problems)} problems:\n  " + "\n  ".join(lines))


def explain(
    error: ValidationError,
    model: type[BaseModel],
    values: Mapping[str, Any],
    why: Mapping[KeyPath, str],
) -> DiraError:
    """Turn what pydantic found into one error: a PluginError if broken plugins are all there is.

    Args:
        error: What validating `values` raised.
        model: What they were validated as.
        values: The merged recipe.
        why: Origin of each value.
    """
    found: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for details in error.errors():
        found.setdefault(_place(details, values), []).append(details)
    lines = []
    for place, several in list(found.items())[:MOST_LISTED]:
        rules = dict.fromkeys(_rule(place, details, model, values) for details in several)
        source = origin(tuple(map(str, place)), why)
        lines.append(f"{_dotted(place)}{' or '.join(rules)}{f' ({source})' if source else ''}")
    lines += [""] * (len(found) - len(lines))
    causes = [details.get("ctx", {}).get("error") for details in error.errors()]
    broken = all(isinstance(cause, PluginError) for cause in causes)
    return PluginError(str(listed(lines))) if broken else listed(lines)


def origin(path: KeyPath, why: Mapping[KeyPath, str]) -> str:
    """Return where the value at a key path, or what is in it, comes from; "" is a default."""
    inside = [text for known, text in why.items() if known[: len(path)] == path]
    above = [why[path[:n]] for n in range(1, len(path)) if path[:n] in why]
    return ", ".join(dict.fromkeys(inside or above))


def _place(details: ErrorDetails, values: Any) -> tuple[str | int, ...]:
    """Return the key path of a problem, without what pydantic adds for members of unions."""
    place: list[str | int] = []
    for part in details["loc"]:
        index = isinstance(values, list | tuple) and isinstance(part, int) and part < len(values)
        if index or (isinstance(values, Mapping) and part in values):
            values = values[part]
        elif details["type"] == "missing" and part == details["loc"][-1]:
            return (*place, part)
        else:
            break
        place.append(part)
    return tuple(place)


def _rule(
    place: Sequence[str | int], details: ErrorDetails, model: type[BaseModel], values: Any
) -> str:
    kind, message = details["type"], details["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return "required, and not given"
    if kind == "extra_forbidden":
        known = _keys(place[:-1], model, values)
        return f"no such key (known: {', '.join(known)}){did_you_mean(str(place[-1]), known)}"
    if kind in ("rule", "component"):
        return message
    return f"{message[:1].lower()}{message[1:]}, got {short(details['input'])}"


def _keys(place: Sequence[str | int], model: type[BaseModel], values: Any) -> list[str]:
    """Return the keys of the table at a key path; where a component was chosen, its options."""
    annotation: Any = model
    for part in place:
        values = values[part]
        if isinstance(part, int):
            annotation = next(iter(get_args(annotation)), None)
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            field = annotation.model_fields[part]
            annotation = Annotated[field.annotation, *field.metadata, None]
        annotation = _table(annotation, values)
    table = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return list(annotation.model_fields) if table else []


def _table(annotation: Any, value: Any) -> Any:
    """Return the model of a value: what was chosen, or the annotation without its metadata."""
    if get_origin(annotation) is not Annotated:
        return annotation
    bare, *metadata = get_args(annotation)
    for mark in metadata:
        if isinstance(mark, Chosen):
            name = value if isinstance(value, str) else value["name"]
            return installed().find(mark.kind, name).options
    return bare


def _dotted(place: Sequence[str | int]) -> str:
    """Write a key path; quote what is no plain key, since a file may hold anything."""
    parts = [str(p) if _PLAIN.fullmatch(str(p)) else short(p) for p in place]
    return f"{'.'.join(parts)}: " if parts else ""
