"""`dira data`: look at images before a run does, and prepare them."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dira_core.components import Component, Options
    from dira_core.data.audit import Audit, Spread
    from dira_core.data.cache import CacheSource
    from dira_core.data.cacheindex import Entry
    from dira_core.roles import Source

app = typer.Typer(help="Look at images, and prepare them.", no_args_is_help=True)

AXES = ("width", "height", "depth")
"""What the last axis, the one before and the first of three are called."""

MOST_LISTED = 10
"""Names shown of a kind; the JSON has them all."""


@app.callback()
def data() -> None:
    """Look at images before a run does, and prepare them so that reading them costs little."""


Workers = Annotated[
    int | None, typer.Option(min=0, help="processes that read; by default one a processor")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="data.key=value, an option of the source; can be repeated"),
]
Read = Annotated[str, typer.Argument(help="folder, CSV manifest, or name of a source")]


@app.command()
def inspect(
    path: Read,
    json: Annotated[bool, typer.Option("--json", help="print JSON, with every name")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="read this many, evenly spaced")] = None,
    workers: Annotated[int, typer.Option(min=0, help="processes that read files")] = 0,
    assignments: Assignments = None,
) -> None:
    """Read every image; say what is there, what cannot be read and why, and what to do.

    Exits with 3 if nothing can be read.
    """
    from dira_core.data.audit import audit

    source = _source(path, assignments or [])
    with _progress("reading", min(limit or len(source), len(source))) as tick:
        found = audit(source, limit=limit, workers=workers, tick=lambda: tick(1))
    typer.echo(found.to_json() if json else "\n".join(report(found)))
    if not found.readable:
        raise typer.Exit(3)


@app.command()
def cache(
    path: Read,
    out: Annotated[Path, typer.Option("--out", help="folder of the cache, made or completed")],
    grey: Annotated[bool, typer.Option("--grey", help="make luminance of colour")] = False,
    workers: Workers = None,
    verify: Annotated[bool, typer.Option("--verify", help="then read and check all of it")] = False,
    assignments: Assignments = None,
) -> None:
    """Decode every image once into a folder that runs map into memory: --data FOLDER.

    Killed, it goes on where it was when the same command is given again. Images that cannot be read
    are named and left out. 8 and 16 bits are kept as they are; other numbers are cut off at their
    window and spread over 16 bits. Exits with 3 if nothing can be read, or something is damaged.
    """
    from dira_core.data.caching import build

    component, options = _chosen(path, assignments or [])
    source: Source = component.build(options)
    made_from = {"source": component.name, **options.model_dump(mode="json", exclude={"path"})}
    made_from |= source.reading
    with _progress("decoding", len(source)) as tick:
        built = build(source, out, made_from, grey=grey, workers=_processes(workers), tick=tick)
    typer.echo("\n".join(_summary(built, out)))
    if not verify:
        return
    with _progress("checking", len(built)) as tick:
        damaged = [built.name(i) for i in range(len(built)) if not _checked(built, i, tick)]
    typer.echo(f"damaged    {len(damaged)} of {len(built)} images")
    if damaged:
        typer.echo("\n".join(_names(damaged)))
        typer.echo(f"advice     remove {out} and give the same command again")
        raise typer.Exit(3)


@app.command()
def shard(
    path: Read,
    out: Annotated[Path, typer.Option("--out", help="folder of the shards, made or completed")],
    size: Annotated[int, typer.Option("--size", min=1, help="images of a shard")] = 1000,
    workers: Workers = None,
    assignments: Assignments = None,
) -> None:
    """Write every image into tar files in the layout of WebDataset: --data FOLDER, or a URL of it.

    Files are copied as they are, DICOM with all of its header; images of other sources become PNG.
    Killed, it goes on where it was when the same command is given again. Images that cannot be read
    are named and left out.
    """
    from dira_core.data.sharding import write_shards

    component, options = _chosen(path, assignments or [])
    source: Source = component.build(options)
    made_from = {"source": component.name, **options.model_dump(mode="json", exclude={"path"})}
    with _progress("writing", len(source)) as tick:
        written = write_shards(
            source, out, made_from, size=size, workers=_processes(workers), tick=tick
        )
    size_in_all = sum(written.shards) / 2**20
    typer.echo(f"{written.images} images in {len(written.shards)} shards in {out}")
    typer.echo(f"size       {size_in_all:.1f} MiB")
    typer.echo("\n".join([*_left_out(written.left_out), _use(out)]))


def _summary(cache: CacheSource, folder: Path) -> Iterator[str]:
    """Yield the lines that say what a cache holds."""
    entries, left_out = cache.index.entries, cache.index.left_out
    raw = sum(map(_raw_bytes, map(cache.entry, range(len(cache)))))
    size = sum(cache.header.pieces)
    yield f"{len(cache)} images in {folder}"
    yield f"size       {size / 2**20:.1f} MiB, {size / raw:.2f} times the images"
    if entries["spread"].any():
        yield f"note       {entries['spread'].sum()} x spread over 16 bits within their window"
    yield from _left_out([(name, reason) for _, name, reason in left_out])
    yield _use(folder)


def _left_out(images: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines about images that could not be read: name and reason of each."""
    for reason, count in Counter(reason for _, reason in images).most_common():
        yield f"left out   {count} x {reason}"
        yield from _names([name for name, why in images if why == reason])


def _use(folder: Path) -> str:
    return f"use it     dira run --data {shlex.quote(str(folder))}"


def _processes(workers: int | None) -> int:
    return len(os.sched_getaffinity(0)) if workers is None else workers


def _raw_bytes(entry: Entry) -> int:
    return math.prod(entry.shape) * entry.bytes


def _checked(cache: CacheSource, index: int, tick: Callable[[int], None]) -> bool:
    tick(1)
    return cache.intact(index)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; yield what moves it on."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda images: bar.advance(task, images)


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
    if audit.formats:
        yield f"format     {_listing(audit.formats)}"
    yield f"bits       {_listing(audit.bits)}"
    yield f"channels   {_listing(audit.channels)}"
    sizes = zip(AXES, audit.sizes, strict=False)
    yield "size       " + "; ".join(f"{axis} {_spread(spread)} px" for axis, spread in sizes)
    yield f"values     {audit.intensity[0]:g} to {audit.intensity[1]:g}"
    yield f"window     0 = {_spread(audit.window_low)}; 1 = {_spread(audit.window_high)}"
    if audit.spacing:
        along = zip(AXES, audit.spacing, strict=False)
        listed = "; ".join(f"{axis} {_spread(spread)} mm" for axis, spread in along)
        yield f"spacing    {listed} ({audit.spaced} images say it)"
    if audit.stored:
        yield f"axes       {_listing(audit.stored)}; read as RAS, width to depth"


def _listing(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _spread(spread: Spread) -> str:
    low, median, high = (f"{number:g}" for number in spread)
    return low if low == high else f"{low} .. {median} .. {high}"


def _names(names: list[str]) -> Iterator[str]:
    yield from (f"           {name}" for name in names[:MOST_LISTED])
    if len(names) > MOST_LISTED:
        yield f"           and {len(names) - MOST_LISTED} more (--json lists all)"


def _source(value: str, assignments: Sequence[str]) -> Source:
    """Build the source that a value of `--data` means, with the options assigned."""
    component, options = _chosen(value, assignments)
    source: Source = component.build(options)
    return source


def _chosen(value: str, assignments: Sequence[str]) -> tuple[Component, Options]:
    """Return the source that a value of `--data` means, and its options."""
    from pydantic import ValidationError

    from dira_core.errors import RecipeError
    from dira_core.layering import assignment, data_layer, merge
    from dira_core.plugins import installed

    layers = [data_layer(value), *map(assignment, assignments)]
    wrong = sorted({key for layer in layers for key in layer.values} - {"data"})
    if wrong:
        raise RecipeError(f"--set here takes data.key=value, got {wrong[0]!r}")
    merged = merge(layers, {"data"})
    if merged.problems:
        raise RecipeError("; ".join(merged.problems))
    chosen = merged.values["data"]
    name = chosen.pop("name", None) if isinstance(chosen, dict) else None
    if not isinstance(name, str):
        raise RecipeError("--set here takes data.key=value, and data.name is that of a source")
    component = installed().find("source", name)
    try:
        return component, component.options.model_validate(chosen)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors()]
        raise RecipeError(
            f"options of the source {component.name!r} do not fit ({'; '.join(wrong)}): give what "
            f"it reads, see `dira plugins show {component.name}`"
        ) from error
