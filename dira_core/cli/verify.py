"""`dira verify`: replay steps of a run and compare."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from dira_core.launch import Launch, attended, launch


def verify(
    run: Annotated[Path, typer.Argument(help="Folder of the run; nothing in it is changed.")],
    checkpoint: Annotated[
        int | None,
        typer.Option(
            "--checkpoint", help="Step of the checkpoint to start from; the last but one."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="How many; up to the next checkpoint."),
    ] = None,
    nproc: Annotated[
        int, typer.Option("--nproc", min=1, help="Processes, as many as the run had.")
    ] = 1,
) -> None:
    """Replay steps of a run from a checkpoint, and compare with what it left, bit for bit.

    Compared are its lines of metrics, and weights and optimizer state in the checkpoints on the
    way. Exit codes: 0 bit-identical, 8 the first difference is named, with its likely cause,
    2 to 7 as of `dira run`.
    """
    from dira_core.distributed import launched, rank
    from dira_core.peers import joined
    from dira_core.verify import replayed, said, stored_recipe

    recipe = stored_recipe(run)
    if nproc > 1 and not launched():
        launch(sys.argv[1:], Launch(nproc, restarts=0))
        return
    with attended() if launched() else nullcontext(), joined(recipe.train.timeout_s):
        done = replayed(recipe, run, checkpoint, steps)
        for line in said(done) if rank() == 0 else []:
            typer.echo(line)
