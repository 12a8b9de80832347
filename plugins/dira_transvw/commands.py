"""`dira words`: find visual words in volumes. Heavy imports stay in the bodies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Find visual words in volumes, and look at them.", no_args_is_help=True)

MOST_LISTED = 5


@app.callback()
def words() -> None:
    """Find visual words in volumes: places that look alike in all patients."""


@app.command()
def discover(
    data: Annotated[
        str,
        typer.Option("--data", help="volumes: folder, CSV manifest, cache, or name of a source"),
    ],
    out: Annotated[Path, typer.Option("--out", help="folder of the words, made or completed")],
    number: Annotated[int, typer.Option("--words", min=2, help="C, visual words")] = 44,
    instances: Annotated[int, typer.Option(min=1, help="K, patients of each word")] = 200,
    held_out_instances: Annotated[
        int, typer.Option(min=0, help="the same, of patients held out")
    ] = 30,
    resolutions: Annotated[
        int, typer.Option(min=1, help="cubes of an instance; all but one vary in width and place")
    ] = 3,
    size: Annotated[
        tuple[int, int, int], typer.Option(help="depth, height and width of a cube in voxels")
    ] = (32, 64, 64),
    apart: Annotated[float, typer.Option(min=0, help="voxels between two words, at least")] = 5.0,
    border: Annotated[
        tuple[float, float, float],
        typer.Option(help="distance of a word to the border, part of each axis"),
    ] = (0.1, 0.2, 0.2),
    lung: Annotated[
        bool,
        typer.Option("--lung", help="chest CT in HU: only cubes with at most 15 % of soft tissue"),
    ] = False,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.9, help="part of the patients that are held out")
    ] = 0.2,
    grid: Annotated[
        tuple[int, int, int],
        typer.Option(help="sides that volumes are shrunk to for their features; 16s"),
    ] = (32, 64, 64),
    epochs: Annotated[int, typer.Option(min=1, help="of the autoencoder, at most")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="same seed, same words")] = 0,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="data.key=value, an option of the source; can be repeated"),
    ] = None,
) -> None:
    """Find places that look alike in all patients, and cut them out: train on them by --data OUT.

    An autoencoder learns to describe whole volumes. For each word a patient and a place in it are
    drawn; the patients most like it are cut at the same place of their bodies, at several widths.
    All those cubes are instances of one word, whose number a run with --disc transvw learns to
    tell. No label is needed. Of patients held out, cubes are cut for testing alone.

    Killed, it goes on when the same command is given again. Defaults are the published ones; for
    volumes smaller than a chest CT give a smaller --size and fewer --words. Make a cache first
    (`dira data cache`) if volumes are read slowly.
    """
    from dira_core import RecipeError, build_source, gather, resolve
    from dira_transvw.discovery import Plan, discover

    for text in assignments or []:
        if not text.strip().startswith("data."):
            raise RecipeError(f"--set here takes data.key=value, got {text!r:.60}")
    recipe = resolve(gather(data=data, assignments=assignments or [])).recipe
    kept = (number, instances, held_out_instances, resolutions, size, apart, border, lung)
    source = build_source(recipe)
    options = recipe.data.options.model_dump(mode="json", exclude={"path"})
    reading = {**options, **source.reading}
    plan = Plan(*kept, held_out=held_out, grid=grid, epochs=epochs, seed=seed, reading=reading)
    found = discover(source, out, plan, _bar)
    training, held = found.volumes
    typer.echo(f"volumes    {training} to find words in, {held} held out")
    for name in found.unreadable[:MOST_LISTED]:
        typer.echo(f"left out   {name}")
    if len(found.unreadable) > MOST_LISTED:
        typer.echo(f"           and {len(found.unreadable) - MOST_LISTED} more")
    part = f"{found.explained:.0%}"
    typer.echo(f"features   explain {part} of how volumes not trained on differ from their mean")
    typer.echo(f"words      {number}, in {found.cubes['train']} cubes")
    typer.echo(f"held out   {found.cubes['held-out']} cubes, by --set data.split=held-out")
    typer.echo(f"use        dira run --disc transvw --data {out}/")


@app.command()
def score(
    run: Annotated[Path, typer.Argument(help="folder of a run with --disc transvw")],
    data: Annotated[Path, typer.Option("--data", help="folder that `dira words discover` wrote")],
    split: Annotated[
        str, typer.Option(help="instances of which patients: held-out, train or all")
    ] = "held-out",
) -> None:
    """Say how many cubes a run tells the word of: by default of patients held out, undistorted.

    The weights are those of the newest checkpoint. Chance is one in as many words as there are.
    """
    from dira_core import RecipeError
    from dira_transvw import WordsOptions
    from dira_transvw.scoring import score

    if split not in ("held-out", "train", "all"):
        raise RecipeError(f"--split is held-out, train or all: got {split!r}")
    found = score(run, WordsOptions(path=data, split=split))
    by_word = found.by_word()
    lowest = sorted(by_word, key=lambda word: by_word[word])[:MOST_LISTED]
    typer.echo(f"cubes      {len(found.words)} of {len(set(found.volumes))} volumes, {split}")
    typer.echo(f"told       {found.accuracy:.1%} (chance {1 / len(by_word):.1%})")
    worst = ", ".join(f"word {word} {by_word[word]:.0%}" for word in lowest)
    typer.echo(f"lowest     {worst}")


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a bar on a terminal; yield what moves it on."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)
