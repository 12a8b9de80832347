"""`dira run`: pretrain, rehearse a run, or continue one."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dira_core.cli.config import recipe_flags
from dira_core.continuing import changed_for_good
from dira_core.errors import RecipeError
from dira_core.launch import Launch, attended, launch
from dira_core.layering import Layer, default_preset, file_layer
from dira_core.pace import in_words
from dira_core.recipe import Recipe
from dira_core.resolving import resolve
from dira_core.runfolder import RECIPE, discard_unbegun, new_run_folder, run_of_job
from dira_core.signals import EXIT_PREEMPTED, unbegun

if TYPE_CHECKING:
    from dira_core.api import Result
    from dira_core.rehearsal import Rehearsal

PROFILED = 5
"""Steps that `--profile` traces."""


@recipe_flags
def run(
    asked: list[Layer],
    out: Annotated[
        Path, typer.Option("--out", help="Folder in which run folders are made.")
    ] = Path("runs"),
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run folder; by default its parts.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Run folder to continue, bit for bit.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Take two steps, show the views, predict memory and time."),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Trace five steps with torch's profiler, into RUN/profile/; "
            "--set log.profile=N traces more or fewer.",
        ),
    ] = False,
    nproc: Annotated[
        int | None,
        typer.Option("--nproc", min=1, help="Processes on this machine; --batch-size is of each."),
    ] = None,
    machines: Annotated[
        int, typer.Option("--machines", min=1, help="Machines on which this command is started.")
    ] = 1,
    rendezvous: Annotated[
        str | None, typer.Option("--rendezvous", help="HOST:PORT of the first machine.")
    ] = None,
    wait: Annotated[
        int, typer.Option("--wait", min=1, help="Seconds a machine waits for the others.")
    ] = 600,
    restarts: Annotated[
        int, typer.Option("--restarts", min=0, help="Fresh starts after a process is lost.")
    ] = 3,
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            help="Name of the job, the same on all machines; started again under it, the job "
            "continues its run. With several processes, SLURM's by default.",
        ),
    ] = None,
) -> None:
    """Pretrain what the recipe says, and say what was learned.

    Without --data, images are made up and the run takes minutes. Ctrl-C saves and leaves;
    twice leaves at once. Exit codes: 0 done, 2 usage, 3 data, 4 plugin, 5 diverged, 6 no memory or
    disk, 7 a process was lost, 75 stopped by a signal and saved.
    """
    if profile:
        said = any(layer.origin == "--set log.profile" for layer in asked)
        asked += [] if said else [Layer.at("--profile", ("log", "profile"), PROFILED)]
    recipe = resolve(asked).recipe if resume is None else resumed(resume, asked)
    if dry_run:
        from dira_core.rehearsal import rehearse

        parts = {stage.name: recipe.at_stage(n) for n, stage in enumerate(recipe.stages)}
        for part, chosen in (parts or {"": recipe}).items():
            typer.echo(f"stage {part}" if part else "", nl=bool(part))
            show_rehearsal(rehearse(chosen, new_run_folder(out, name, f"dry-{title(chosen)}")))
        return
    from dira_core.distributed import launched
    from dira_core.peers import joined

    with unbegun():
        if launched():
            with attended(), joined(recipe.train.timeout_s):
                train(recipe, resume, out, name, asked)
        elif machines > 1 or rendezvous or job or nproc not in (None, 1):
            how = Launch(nproc or 1, machines, rendezvous, wait, restarts, job or "")
            launch(sys.argv[1:], how)
        else:
            train(recipe, resume, out, name, asked)


def train(
    recipe: Recipe, resume: Path | None, out: Path, name: str | None, asked: list[Layer]
) -> None:
    """Start a run, continue the given one, or the one this job began before."""
    from dira_core.api import run as pretrain
    from dira_core.cli.live import Terminal
    from dira_core.distributed import from_first, rank

    first = rank() == 0
    again = resume or (run_of_job(out) if first else None)
    place = again or (new_run_folder(out, name, title(recipe)) if first else None)
    folder, resuming = Path(from_first(str(place))), from_first(again is not None)
    if resuming and resume is None and (folder / RECIPE).is_file():
        recipe = of_job(folder, asked)
    with Terminal() if first else nullcontext() as terminal:
        if terminal is not None:
            terminal.said(f"{title(recipe)} in {folder}")
        try:
            result = pretrain(recipe, folder, resume=resuming, display=terminal)
        except BaseException:
            if place is not None and again is None:
                discard_unbegun(place)
            raise
    if result.status != "done":
        if first:
            quoted = shlex.quote(str(folder))
            typer.echo(f"saved; continue with: dira run --resume {quoted}", err=True)
        sys.exit(EXIT_PREEMPTED)
    if first:
        show(result, recipe.loader.workers)


def resumed(folder: Path, asked: list[Layer]) -> Recipe:
    """Return the recipe of a run, with changes that decide nothing about its weights.

    Raises:
        RecipeError: There is no run, or something else is to be changed.
    """
    if not (folder / RECIPE).is_file():
        raise RecipeError(f"--resume {folder}: no run there, it has no {RECIPE}")
    stored = file_layer(folder / RECIPE)
    changes = [layer for layer in asked if layer not in default_preset(asked)]
    before, after = resolve([stored]).recipe, resolve([stored, *changes]).recipe
    if changed := changed_for_good(before, after):
        raise RecipeError(
            f"--resume continues the same run, {', '.join(changed)} cannot change: "
            f"start a new one with --recipe {folder / RECIPE} and your changes"
        )
    return after


def of_job(folder: Path, asked: list[Layer]) -> Recipe:
    """Return the recipe of a run that this job began, for as many processes as there are now.

    Raises:
        RecipeError: The job asks for another run.
    """
    from dira_core.game import shared_out

    stored = resolve([file_layer(folder / RECIPE)]).recipe
    processes = Layer.at(RECIPE, ("train", "processes"), stored.train.processes)
    after = resolve([processes, *asked]).recipe
    if changed := changed_for_good(shared_out(stored), shared_out(after)):
        raise RecipeError(
            f"this job began {folder} and goes on with it, {', '.join(changed)} cannot change: "
            "start a new run under another --job"
        )
    return after


def title(recipe: Recipe) -> str:
    """Return what a run is called: its roles and its data."""
    roles = (recipe.discriminator, recipe.restorer, recipe.adversary)
    path = getattr(recipe.data.options, "path", None)
    data = Path(path).stem if path else recipe.data.name
    return "-".join([*(role.name for role in roles if role), recipe.backbone.name, data])


def show(result: Result, workers: int) -> None:
    """Print what was learned, before and after, and who waited for whom."""
    before, after = result.summary["before"], result.summary["after"]
    rows = [
        ("kNN accuracy of frozen features", "knn", "{:.1%}"),
        ("restoration error", "restoration/error", "{:.5f}"),
        ("  error of the distorted input", "restoration/input_error", "{:.5f}"),
        ("embedding std (1 healthy, 0 collapsed)", "embedding/std", "{:.2f}"),
        ("effective rank of embeddings", "embedding/rank", "{:.1f}"),
    ]
    typer.echo(f"{'':40}{'before':>10}{'after':>10}")
    for text, key, form in rows:
        if before.get(key) is not None and after.get(key) is not None:
            typer.echo(f"{text:40}{form.format(before[key]):>10}{form.format(after[key]):>10}")
    steps, speed = result.summary["steps"], result.summary.get("images_per_s")
    if speed is None:
        typer.echo(f"{steps} steps, too few in one go for a speed")
    else:
        typer.echo(f"{steps} steps, {speed:.0f} images/s")
        typer.echo(in_words(result.summary, workers))
    if result.summary["unreadable"]:
        typer.echo(f"{result.summary['unreadable']} images could not be read, see unreadable.txt")
    typer.echo(f"weights   {result.folder}/weights/backbone.safetensors")
    typer.echo(f"pictures  {result.folder}/images/restored.png")


def show_rehearsal(found: Rehearsal) -> None:
    """Print what a run would need."""
    for key, value in found.losses.items():
        typer.echo(f"{key:24}{value:.5g}")
    hours, minutes = divmod(round(found.seconds / 60), 60)
    typer.echo(
        f"time      {hours} h {minutes} min for {found.steps} steps, "
        f"{found.images_per_s:.0f} images/s"
    )
    typer.echo(f"memory    {found.peak_mib:.0f} MiB at the peak of a step")
    typer.echo(f"disk      {found.disk_mib:.0f} MiB for checkpoints and weights")
    typer.echo(
        f"data      {found.images} images, {len(found.unreadable)} of {found.looked_at} unreadable"
    )
    for name, reason in found.unreadable.items():
        typer.echo(f"  {name}: {reason}")
    typer.echo(f"pictures  {found.sheet}  (crop, appearance, distorted, restored, error)")
