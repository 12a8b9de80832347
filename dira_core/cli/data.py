"""`dira data`: look at images before a run does."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dira_core.data.audit import Audit, Spread
    from dira_core.roles import Source

app = typer.Typer(help="Look at images before a run does.", no_args_is_help=True)

MOST_LISTED = 10
"""Names shown of a kind; the JSON has them all."""


@app.callback()
def data() -> None:
    """Look at images before a run does."""


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="folder, CSV manifest, or name of a source")],
    json: Annotated[bool, typer.Option("--json", help="print JSON, with every name")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="read this many, evenly spaced")] = None,
    workers: Annotated[int, typer.Option(min=0, help="processes that read files")] = 0,
) -> None:
    """Read every image; say what is there, what cannot be read and why, and what to do.

    Exits with 3 if nothing can be read.
    """
    from rich.console import Console
    from rich.progress import Progress

    from dira_core.data.audit import audit

    source = _source(path)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("reading", total=min(limit or len(source), len(source)))
        found = audit(source, limit=limit, workers=workers, tick=lambda: bar.advance(task))
    typer.echo(found.to_json() if json else "\n".join(report(found)))
    if not found.readable:
        raise typer.Exit(3)


def report(audit: Audit) -> Iterator[str]:
    """Yield the lines of an audit."""
    part = "" if audit.examined == audit.images else f", {audit.examined} examined"
    yield f"{audit.images} images{part}: {audit.readable} readable"
    yield from _facts(audit)
    for heading, counts in (("labels", audit.labels), ("ignored", audit.ignored)):
        if counts:
            yield f"{heading:<10} {_listing(counts)}"
    for note, count in audit.notes.items():
        yield f"note       {count} x {note}"
    reasons = Counter(reason for _, reason in audit.unreadable)
    for reason, count in reasons.most_common():
        yield f"unreadable {count} x {reason}"
        yield from _names([name for name, why in audit.unreadable if why == reason])
    if audit.duplicates:
        yield f"copies     {len(audit.duplicates)} groups of images with the same pixels"
        yield from _names([" = ".join(names) for names in audit.duplicates])
    for advice in audit.advice:
        yield f"advice     {advice}"


def _facts(audit: Audit) -> Iterator[str]:
    if audit.intensity is None or audit.window_low is None or audit.window_high is None:
        return
    yield f"format     {_listing(audit.formats)}"
    yield f"bits       {_listing(audit.bits)}"
    yield f"channels   {_listing(audit.channels)}"
    sizes = zip(("width", "height", "depth"), audit.sizes, strict=False)
    yield "size       " + "; ".join(f"{axis} {_spread(spread)} px" for axis, spread in sizes)
    yield f"values     {audit.intensity[0]:g} to {audit.intensity[1]:g}"
    yield f"window     0 = {_spread(audit.window_low)}; 1 = {_spread(audit.window_high)}"
    if audit.spacing:
        yield f"spacing    {_spread(audit.spacing)} mm ({audit.spaced} images say it)"


def _listing(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _spread(spread: Spread) -> str:
    low, median, high = (f"{number:g}" for number in spread)
    return low if low == high else f"{low} .. {median} .. {high}"


def _names(names: list[str]) -> Iterator[str]:
    yield from (f"           {name}" for name in names[:MOST_LISTED])
    if len(names) > MOST_LISTED:
        yield f"           and {len(names) - MOST_LISTED} more (--json lists all)"


def _source(value: str) -> Source:
    """Build the source that a value of `--data` means, with its default options."""
    from pydantic import ValidationError

    from dira_core.errors import RecipeError
    from dira_core.layering import data_layer
    from dira_core.plugins import installed

    chosen = dict(data_layer(value).values["data"])
    component = installed().find("source", chosen.pop("name"))
    try:
        options = component.options.model_validate(chosen)
    except ValidationError as error:
        missing = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
        raise RecipeError(
            f"source {component.name!r} needs more than its name ({missing}): give what it reads"
        ) from error
    source: Source = component.build(options)
    return source
