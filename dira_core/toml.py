"""Read recipe files, TOML or JSON, that may be hostile; write TOML that reads back the same."""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from dira_core.errors import RecipeError

MAX_BYTES = 256 * 1024
"""A recipe has a few KiB; what is larger is something else."""

MAX_DEPTH = 32
"""Tables and lists within each other; a recipe needs about six."""

_KEY_PART = r"[^\s.=,\[\]{}#]++[ \t]*+\.[ \t]*+"
_LONG_KEY = re.compile(rf"(?<![^\s=,\[\]{{}}#])(?:{_KEY_PART}){{{MAX_DEPTH}}}")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read(path: Path) -> dict[str, Any]:
    """Read a recipe file: JSON where its name ends with .json, else TOML.

    Raises:
        RecipeError: It cannot be read, is too large or too deep, repeats a key, or is not UTF-8.
    """
    text = _text(path)
    try:
        data = _json(text) if path.suffix.lower() == ".json" else _toml(text)
    except RecursionError as error:
        raise _too_deep(path) from error
    except ValueError as error:
        raise RecipeError(f"{path}: not readable: {_lower(str(error))}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a table, got a {type(data).__name__}")
    if depth(data) > MAX_DEPTH:
        raise _too_deep(path)
    return data


def parse_value(text: str) -> Any:
    """Read a value as TOML where it is a number, boolean, list or table; else it is text.

    Raises:
        ValueError: It begins like a list or a table, and is none, or too deep a one.
    """
    with suppress(ValueError, RecursionError):
        parsed = tomllib.loads(f"value = {text}")
        value = parsed["value"]
        dated = isinstance(value, datetime.date | datetime.time)
        if not dated and len(parsed) == 1 and depth(value) <= MAX_DEPTH:
            return value
    if text.startswith(("[", "{")):
        raise ValueError('is no TOML: write a list as [1, "two"], a table as {key = 1}')
    return text


def depth(data: object) -> int:
    """Return how many tables and lists lie within each other; never recurses."""
    level, deepest = [data], 0
    while level := [
        child
        for node in level
        if isinstance(node, Mapping | list)
        for child in (node.values() if isinstance(node, Mapping) else node)
    ]:
        deepest += 1
    return deepest + isinstance(data, Mapping | list)


def leaves(
    table: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield key path and value of all that is in a table and its tables; {} is a value."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def write(table: Mapping[str, Any]) -> str:
    """Write a table as TOML; None becomes "none", as recipes say it.

    Tables get a header of their own; lists of tables are written in place, a line each.
    """
    lines: list[str] = []
    _write_table(table, (), lines)
    return "\n".join(lines).strip() + "\n"


def value(data: Any) -> str:
    """Write a value on one line."""
    if data is None:
        return '"none"'
    if isinstance(data, bool):
        return str(data).lower()
    if isinstance(data, int | float):
        return repr(data)
    if isinstance(data, str):
        # a JSON string is a TOML string, but for DEL and for surrogate pairs
        return json.dumps(data, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(data, Mapping):
        inside = ", ".join(f"{_key(k)} = {value(v)}" for k, v in data.items())
        return f"{{ {inside} }}" if inside else "{}"
    return f"[{', '.join(map(value, data))}]"


def _write_table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    if path:
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    for key, item in table.items():
        if isinstance(item, list) and any(isinstance(each, Mapping) for each in item):
            lines += [f"{_key(key)} = [", *(f"    {value(each)}," for each in item), "]"]
        elif not isinstance(item, Mapping):
            lines.append(f"{_key(key)} = {value(item)}")
    for key, item in table.items():
        if isinstance(item, Mapping):
            _write_table(item, (*path, key), lines)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else value(key)


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            found = "is no file" if path.exists() else "does not exist"
            raise RecipeError(f"{path}: the recipe file {found}")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: not readable: {_lower(str(error))}") from error
    if len(data) > MAX_BYTES:
        raise RecipeError(
            f"{path}: a recipe has at most {MAX_BYTES // 1024} KiB, this file has more"
        )
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise RecipeError(f"{path}: starts with a byte order mark; save it as UTF-8 without one")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _toml(text: str) -> dict[str, Any]:
    if _LONG_KEY.search(text):  # tomllib takes time by the square of a dotted key's length
        raise RecursionError
    return tomllib.loads(text)


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r:.60} is repeated")
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _too_deep(path: Path) -> RecipeError:
    return RecipeError(f"{path}: tables and lists within each other at most {MAX_DEPTH} deep")


def _lower(text: str) -> str:
    text = (text.splitlines() or [""])[0][:200].encode("unicode_escape").decode()
    return f"{text[:1].lower()}{text[1:]}" if text.split(" ")[0].istitle() else text
